"""The whole path, over real sockets: gateways as processes on real stores, a real model server behind them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langserve import RemoteRunnable
from stack import MIGRATIONS, Gateway, gateway, llm_process, make_home

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade
from gateway.local.valkey import start_valkey

INVOKE = "/tasks/manners/invoke"


# What these find depends on no SQL; that each database keeps a run is the matter of the first test.
on_postgres = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@pytest.fixture
def store() -> Iterator[str]:
    """A Valkey of the test's own: what one test asked is in no other's cache."""
    with start_valkey() as url:
        yield url


@pytest.fixture
async def key(database_url: str) -> str:
    return await new_key(database_url, "shop", frozenset({"invoke", "read"}))


async def ask(at: Gateway, key: str, message: str, **headers: str) -> tuple[httpx.Response, dict[str, Any]]:
    async with at.client(key) as client:
        response = await client.post(INVOKE, json={"input": {"message": message}}, headers=headers)
    return response, response.json().get("metadata", {})


async def heals(up: Gateway, key: str) -> bool:
    """Whether the LLM decides again within a minute; each try is a request of its own, so the gateway is the clock."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 60
    while loop.time() < end:
        if (await ask(up, key, "It works again"))[1]["status"] == "accepted":
            return True
    return False


async def test_one_message_through_every_part(
    home: Path, database_url: str, store: str, llm_server: str, key: str
) -> None:
    """A rule decides the easy one for nothing; the LLM decides the rest, is paid for, and the run can be read back."""
    with gateway(home, database_url, store, llm_server) as up:
        response, easy = await ask(up, key, "Thank you for one message through every part!")
        assert (response.status_code, easy["stage"], easy["action"]) == (200, "rules", "deliver")
        assert easy["usage"]["cost"] == "0.000000000"
        response, hard = await ask(up, key, "Whatever, one message through every part.")
        assert (hard["stage"], hard["action"], hard["cached"]) == ("llm", "review", False)
        assert hard["review_id"]
        assert 0 <= hard["score"] <= 1
        tokens = hard["usage"]["input_tokens"]
        assert tokens > 0
        assert hard["usage"]["cost"] == f"0.{(tokens * 1000 + hard['usage']['output_tokens'] * 2000):09d}"
        async with up.client(key) as client:
            run = (await client.get(f"/tasks/manners/runs/{hard['run_id']}")).json()
        assert run["metadata"]["usage"] == hard["usage"]
        assert [attempt["stage"] for attempt in run["metadata"]["attempts"]] == ["rules", "llm"]


async def test_two_gateways_share_cache_and_quota(home: Path, postgres_url: str, store: str, llm_server: str) -> None:
    """What one replica answered the other knows; what one admitted the other counts."""
    await upgrade(postgres_url, MIGRATIONS)
    key = await new_key(postgres_url, "shop", frozenset({"invoke", "read"}))
    task = home / "tasks/manners/task.toml"
    quota = '[[quota]]\nresource = "requests"\nlimit = 12\nper = "day"\nscope = ["task", "key"]\n'
    task.write_text(f"{task.read_text('utf-8')}\n{quota}", "utf-8")
    with (
        gateway(home, postgres_url, store, llm_server) as one,
        gateway(home, postgres_url, store, llm_server) as two,
    ):
        first, said = await ask(one, key, "Two gateways share a cache")
        second, heard = await ask(two, key, "Two gateways share a cache")
        assert (first.headers["x-gateway-cache"], second.headers["x-gateway-cache"]) == ("miss", "hit")
        assert heard["usage"]["cost"] == "0.000000000"
        assert heard["review_id"] not in (None, said["review_id"])
        asked = [ask(at, key, f"Thank you, number {i}") for i in range(10) for at in (one, two)]
        statuses = [response.status_code for response, _ in await asyncio.gather(*asked)]
    assert (statuses.count(200), statuses.count(429)) == (10, 10)


@on_postgres
async def test_a_dead_llm_holds_what_needs_it_and_heals(
    home: Path, tmp_path: Path, database_url: str, store: str, tiny_llm_folder: Path, key: str
) -> None:
    """Killing the LLM server turns only what needs it into a review with a reason, at once; starting it again heals."""
    task = home / "tasks/manners/task.toml"
    patient = "min_label_mass = 0.0\ntimeout_s = 60\ndeadline_s = 60"
    task.write_text(task.read_text("utf-8").replace("min_label_mass = 0.0", patient), "utf-8")
    with llm_process(tiny_llm_folder, tmp_path / "llm.log") as (llm_url, llm):
        port = int(llm_url.rsplit(":", 1)[1])
        with gateway(home, database_url, store, llm_url) as up:
            assert (await ask(up, key, "It works before"))[1]["stage"] == "llm"
            llm.process.kill()
            llm.process.wait()
            response, held = await ask(up, key, "It is dead now")
            assert (held["status"], held["action"], held["reason"]) == ("deferred", "review", "model_unavailable")
            assert response.elapsed.total_seconds() < 20, "nobody waited for the deadline of a minute"
            assert (await ask(up, key, "Thank you all the same"))[1]["action"] == "deliver"
            with llm_process(tiny_llm_folder, tmp_path / "again.log", port):
                assert await heals(up, key)


@on_postgres
async def test_a_dead_store_leaves_the_cheap_stages_answering(
    home: Path, database_url: str, llm_server: str, key: str
) -> None:
    """Without the quota store no money is spent, and nothing is delivered that needed it."""
    task = home / "tasks/manners/task.toml"
    budget = '[[quota]]\nresource = "cost"\nlimit = "1.00"\nper = "month"\nscope = ["task"]\n'
    task.write_text(f"{task.read_text('utf-8')}\n{budget}", "utf-8")
    with start_valkey() as redis_url:
        running = gateway(home, database_url, redis_url, llm_server)
        up = running.__enter__()
    try:
        assert (await ask(up, key, "Thank you without a store"))[1]["action"] == "deliver"
        _, held = await ask(up, key, "This one needs a budget")
        assert (held["status"], held["reason"]) == ("deferred", "store_unavailable")
    finally:
        running.__exit__(None, None, None)


@on_postgres
async def test_a_folder_is_all_that_a_task_needs(
    home: Path, database_url: str, store: str, llm_server: str, key: str
) -> None:
    """tasks/x and prompts/x and nothing else make /tasks/x/invoke answer, through LangChain's own client too."""
    make_home(
        home,
        home / "tokenizer.json",
        {
            "prompts/x/pick.v1.md": "Pick.\n---\n{{request}}\n",
            "tasks/x/task.toml": """
                owner = "x"
                description = "One of three."
                input = "in.json"
                output = "out.json"
                [[stage]]
                name = "llm"
                kind = "chain"
                prompt = "x/pick.v1"
                model = "tiny"
                labels = { one = "A", two = "B", three = "C" }
                min_label_mass = 0.0
                """,
            "tasks/x/in.json": '{"type": "object", "properties": {"request": {"type": "string"}}}',
            "tasks/x/out.json": '{"type": "object"}',
        },
    )
    with gateway(home, database_url, store, llm_server) as up:
        remote = RemoteRunnable(f"{up.url}/tasks/x/", headers={"authorization": f"Bearer {key}"})
        assert (await remote.ainvoke({"request": "two, please"}))["label"] in ("one", "two", "three")
        answers = await remote.abatch([{"request": "one"}, {"request": "three"}])
        assert [set(answer) for answer in answers] == [{"label"}, {"label"}]
