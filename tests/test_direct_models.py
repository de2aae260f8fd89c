"""OpenAI's SDK on the models of models.toml themselves: a gateway as a process, the real LLM server behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from budgets import counting_model
from fault_server import status
from stack import MODELS, Gateway, gateway, make_home, recorded

from gateway.adapters.sql.access import new_key

TALK: Any = [
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story"}]},
]
FOR_SHOP = MODELS.replace('model_id = "tiny"', 'model_id = "tiny"\ncallers = ["shop"]')
HIDDEN = MODELS.replace("tiny", "hidden").replace('model_id = "hidden"', 'model_id = "tiny"')
LIMIT = {"resource": "cost", "limit": "0.000000100", "per": "day"}


@pytest.fixture
def home(tmp_path: Path, tiny_llm_folder: Path) -> Path:
    hidden = HIDDEN.replace("hiddenizer", "tokenizer")
    return make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json", {"models.toml": FOR_SHOP + hidden})


@pytest.fixture
async def up(home: Path, database: str, valkey: str, llm_server: str) -> AsyncIterator[Gateway]:
    with gateway(home, database, valkey, llm_server) as running:
        yield running


@asynccontextmanager
async def clients(
    up: Gateway, database: str, team: str = "shop"
) -> AsyncIterator[tuple[openai.AsyncOpenAI, httpx.AsyncClient]]:
    """The SDK, and a plain client, with a new key of the team."""
    key = await new_key(database, team, frozenset({"invoke", "read", "admin"}))
    async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key=key, max_retries=0) as sdk, up.client(key) as plain:
        yield sdk, plain


async def test_a_listed_team_asks_a_model_and_pays_for_it(up: Gateway, database: str) -> None:
    """Whole and streamed answers agree and end with the usage; both are in the ledger as `model:tiny`; who leaves in
    the middle is settled; a temperature samples; the run can be read back and its version looked up.
    """
    async with clients(up, database) as (client, plain):
        assert [model.id async for model in client.models.list()] == ["task:manners", "tiny"]
        whole = await client.chat.completions.create(model="tiny", messages=TALK, max_tokens=12)
        (choice,) = whole.choices
        assert (choice.finish_reason, bool(choice.message.content)) == ("length", True)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 12

        stream = await client.chat.completions.create(
            model="tiny", messages=TALK, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
        *pieces, stop, last = [chunk async for chunk in stream]
        assert len(pieces) > 1
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        # The random model says half characters; those at the very end are never streamed.
        assert (choice.message.content or "").rstrip("\ufffd") == said.rstrip("\ufffd")
        assert (stop.choices[0].finish_reason, last.usage) == ("length", whole.usage)

        leaving = await client.chat.completions.create(model="tiny", messages=TALK, max_tokens=60, stream=True)
        left = (await anext(aiter(leaving))).id
        await leaving.close()
        metadata = await recorded(plain, "model:tiny", left)
        assert (metadata["status"], metadata["usage"]["output_tokens"]) == ("accepted", 60)

        one, two, again = [
            (await client.chat.completions.create(model="tiny", messages=TALK, max_tokens=30, temperature=1.5, seed=s))
            for s in (1, 2, 1)
        ]
        assert one.choices[0].message.content == again.choices[0].message.content != two.choices[0].message.content
        assert one.model_extra is not None
        version = f"/tasks/model:tiny/versions/{one.model_extra['taskgate']['fingerprint']}"
        assert (await plain.get(version)).json()["task"] == "model:tiny"

        usage = (await plain.get("/usage")).json()
        counted = {(line["task"], line["model"]): line for line in usage["lines"]}
        spent = 2 * 12 + 60 + 3 * 30
        assert counted["model:tiny", "tiny"]["output_tokens"] == spent
        assert counted["model:tiny", None]["inferences"] == 6


async def test_only_those_that_models_toml_names_may_ask(up: Gateway, database: str) -> None:
    """Another team is refused and not shown the model; a model without callers is as good as unknown."""
    async with clients(up, database, "other") as (client, _):
        assert [model.id async for model in client.models.list()] == ["task:manners"]
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="tiny", messages=TALK)
    async with clients(up, database) as (client, _):
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="hidden", messages=TALK)
        assert unknown.value.code == "unknown_task"
        with pytest.raises(openai.UnprocessableEntityError):
            await client.chat.completions.create(model="tiny", messages=TALK, temperature=-1)


async def test_budgets_hold_and_a_model_that_is_down_is_an_error(
    home: Path, database: str, valkey: str, tiny_llm_folder: Path
) -> None:
    """A budget that does not cover the call is 429, before anything is spent; a server that fails is 502 with the
    reason, recorded; the turns and the sampling reach the server as they were given, greedy where nothing was said.
    """
    async with counting_model(tiny_llm_folder) as (model, llm):
        with gateway(home, database, valkey, llm) as up:
            async with clients(up, database) as (client, plain):
                await client.chat.completions.create(model="tiny", messages=TALK, temperature=0.5, top_p=0.9, stop="x")
                await client.chat.completions.create(model="tiny", messages=TALK)
                sampled, greedy = (seen.body for seen in model.asked)
                assert sampled == {
                    "model": "tgi",
                    "messages": [
                        {"role": "system", "content": "Be short."},
                        {"role": "user", "content": "Hello"},
                        {"role": "assistant", "content": "Yes?"},
                        {"role": "user", "content": "Tell me a story"},
                    ],
                    "max_tokens": 512,
                    "temperature": 0.5,
                    "top_p": 0.9,
                    "stop": ["x"],
                }
                assert greedy["temperature"] == 0.0
                model.script.append(status(422, "validation"))
                with pytest.raises(openai.InternalServerError) as failed:
                    await client.chat.completions.create(model="tiny", messages=TALK)
                assert (failed.value.status_code, failed.value.code) == (502, "cascade_exhausted")
                asked = len(model.asked)
                await plain.put("/teams/shop/limits", json={"limits": [LIMIT]})
                served, refused = await until_refused(client)
                assert (refused, len(model.asked)) == ("budget_exceeded", asked + served)


async def until_refused(client: openai.AsyncOpenAI) -> tuple[int, str | None]:
    """Ask until the limit that was just set holds: how many were answered before, and the code of the refusal."""
    async with asyncio.timeout(60):
        for served in count():
            try:
                await client.chat.completions.create(model="tiny", messages=TALK)
            except openai.RateLimitError as refused:
                return served, refused.code
    raise AssertionError("the limit never came to hold")
