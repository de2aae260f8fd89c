"""The chat door over llama.cpp's own server, where an environment with llama-cpp-python is at hand.

LLAMACPP_PYTHON names its interpreter (`pip install 'llama-cpp-python[server]'` compiles for minutes), LLAMACPP_MODEL a
GGUF file of SmolLM2, as `gateway model fetch` brings one.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_stage import ITEM, Metered, declared_model, declared_stage, files_for
from stack import ROOT

from gateway.adapters.chain_builder import ChainBuilder
from gateway.core.cascade import StageFailed
from gateway.local.child import Child, free_port

PYTHON, MODEL = os.environ.get("LLAMACPP_PYTHON"), os.environ.get("LLAMACPP_MODEL")
pytestmark = [
    pytest.mark.skipif(not (PYTHON and MODEL), reason="LLAMACPP_PYTHON and LLAMACPP_MODEL are not set"),
    pytest.mark.timeout(600),
]
FOLDER = ROOT / "tasks/message-moderation/adapter"
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server, with the log-probs of all positions, without which it gives none."""
    port = free_port()
    options = ["--logits_all", "true", "--n_ctx", "1024", "--n_threads", "1", "--model_alias", "tiny"]
    command = [str(PYTHON), "-m", "llama_cpp.server", "--model", str(MODEL), "--port", str(port), *options]
    child = Child("llama.cpp", command, tmp_path_factory.mktemp("llamacpp") / "log", {})
    try:
        child.wait_ready(f"http://127.0.0.1:{port}/v1/models", 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.stop()


@pytest.fixture
async def builder() -> AsyncIterator[ChainBuilder]:
    builder = ChainBuilder()
    yield builder
    await builder.aclose()


async def run(
    builder: ChainBuilder, url: str, metered: Metered, output: Any = None, item: Any = ITEM, **stage: Any
) -> Any:
    """One item through a stage over the server, with two minutes' patience."""
    declared = declared_stage(timeout_s=120, deadline_s=120, retries=0, **stage)
    model = declared_model(url, kind="openai", tokenizer="tokenizer.json")
    return await builder.build(declared, files_for(declared, model, Path(FOLDER), output=output), "stage[0]").run(
        item, metered.meter
    )


@pytest.mark.parametrize("message", ["Can you come at nine?", "Grüße 你好 🙂 " * 20, "<|im_start|>system " * 10, ""])
async def test_a_label_is_scored_and_its_tokens_are_settled(builder: ChainBuilder, url: str, message: str) -> None:
    """Log-probs of the first position come back, and exact counts within the estimate, whatever the message."""
    metered = Metered()
    finding = await run(builder, url, metered, item={"sender_role": "pro", "message": message})
    (call,), (intent,) = metered.calls, metered.books.intents
    assert (call.outcome, call.settled, call.usage.output_tokens) == ("ok", True, 1)
    assert 0 < call.usage.input_tokens <= intent.estimate.input_tokens
    assert 0 <= finding.score <= 1


async def test_the_same_prompt_has_the_same_score(builder: ChainBuilder, url: str) -> None:
    """Greedy: nothing is drawn."""
    first, second = [await run(builder, url, Metered()) for _ in range(2)]
    assert first.score == pytest.approx(second.score, abs=1e-3)


async def test_another_model_is_named(builder: ChainBuilder, url: str) -> None:
    """The server says by which name it serves, so that a pin can be checked."""
    right, wrong = [
        files_for(declared_stage(), declared_model(url, kind="openai", model_id=name), FOLDER).model
        for name in ("tiny", "another")
    ]
    assert await builder.verify(right) == ()
    (said,) = await builder.verify(wrong)
    assert "does not serve another" in said


async def test_a_streamed_text_stays_at_its_estimate(builder: ChainBuilder, url: str) -> None:
    """The server leaves out the usage of a stream: the text is good, and its cost unsettled."""
    heard: list[dict[str, Any]] = []
    metered = Metered(heard.append)
    finding = await run(builder, url, metered, TEXT, answer="text", labels={}, max_output_tokens=8)
    assert finding.output == {"text": "".join(part["text"] for part in heard)}
    assert [(call.outcome, call.settled) for call in metered.calls] == [("lost", False)]


async def test_a_grammar_is_refused_as_if_the_model_had_failed(builder: ChainBuilder, url: str) -> None:
    """`json_schema` is answered 500, so an answer of JSON fails there, at its estimate."""
    metered = Metered()
    with pytest.raises(StageFailed) as failed:
        await run(builder, url, metered, TEXT, answer="json", labels={}, max_output_tokens=8)
    assert (failed.value.reason, [call.http_status for call in metered.calls]) == ("model_error", [500])
