"""TGI's door as a citizen of LangChain: what tracers see, and what a team's own chain can do with it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chain_stage import PROMPT, Metered, declared_model, declared_stage, files_for
from fault_server import FaultServer, serving
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import PromptTemplate
from tokenizers import Tokenizer

from gateway.adapters.chain_builder import ChainBuilder
from gateway.adapters.model_port import ASK, Ask, reply_of
from gateway.adapters.replicas import Replicas
from gateway.adapters.tgi import TgiLLM, hub_client, tgi_llm
from gateway.adapters.token_files import TokenCounter
from gateway.adapters.turns import stage_prompt
from gateway.adapters.wire import Wire


class Watching(AsyncCallbackHandler):
    """A tracer that keeps what it is shown."""

    def __init__(self) -> None:
        self.results: list[LLMResult] = []

    async def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.results.append(response)


@pytest.fixture
def server(tiny_llm_folder: Path) -> FaultServer:
    return FaultServer(Tokenizer.from_file(str(tiny_llm_folder / "tokenizer.json")))


@pytest.fixture
async def llm(server: FaultServer) -> AsyncIterator[TgiLLM]:
    async with serving(server) as url:
        builder = ChainBuilder()
        files = files_for(declared_stage(), declared_model(url), Path())
        assert files.model is not None
        yield tgi_llm(
            hub_client(builder.wire), builder.wire, Replicas([url], 4), files.model.metered, TokenCounter(None, ""), {},
            max_new_tokens=3, top_n_tokens=None, adapter=None,
        )  # fmt: skip
        await builder.aclose()


@contextmanager
def asking() -> Iterator[Metered]:
    """What a chain stage does around its chain."""
    metered = Metered()
    token = ASK.set(Ask(metered.meter, 5.0, asyncio.get_running_loop().time() + 5.0, 0))
    yield metered
    ASK.reset(token)


async def test_a_teams_own_chain_is_metered_too(llm: TgiLLM) -> None:
    """The model works in any chain, with any prompt and parser, and every request is in the books."""
    chain = PromptTemplate.from_template("Say {word}.") | llm | StrOutputParser()
    with asking() as metered:
        assert await chain.ainvoke({"word": "B"}) == "B"
    assert metered.outcomes == ["ok"]
    assert metered.books.intents[0].estimate.output_tokens == 3


async def test_a_tracer_sees_the_details(llm: TgiLLM) -> None:
    """With a callback the run goes LangChain's whole way; the answer is the same."""
    watching = Watching()
    chain = stage_prompt(PROMPT, "chatml") | llm
    with asking():
        seen = await chain.ainvoke({"message": "hi"}, {"callbacks": [watching]})
        unseen = await chain.ainvoke({"message": "hi"})
    (result,) = watching.results
    reply = (result.generations[0][0].generation_info or {})["reply"]
    assert reply == reply_of(seen) == reply_of(unseen)
    assert reply.positions[0].chosen.text == "B"
    assert reply.input_tokens > 0


async def test_another_models_text_is_no_reply() -> None:
    """The parser refuses output that did not come through a metered door."""
    for output in ("B", HumanMessage("B")):
        with pytest.raises(TypeError, match="model doors"):
            reply_of(output)


async def test_a_prompt_is_text_and_messages() -> None:
    """One rendering: the chat format for LLMs, turns for chat models; what an item lacks is empty."""
    value = await stage_prompt(PROMPT, "plain").ainvoke({"message": "hi"})
    assert (
        value.to_string() == "You judge messages.\nC abuse\nD spam\n\nFrom:\nMessage: hi\n"
        or "From: \n" in value.to_string()
    )
    assert [(m.type, m.content) for m in value.to_messages()] == [
        ("system", "You judge messages.\nC abuse\nD spam"),
        ("human", "From: \nMessage: hi"),
    ]


async def test_a_wire_can_be_closed_twice() -> None:
    """Closing what was never opened, or is closed already, is nothing."""
    wire = Wire()
    await wire.aclose()
    await wire.aclose()
