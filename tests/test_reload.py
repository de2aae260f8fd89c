"""Hot reload over real processes: files change under a running gateway."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from fault_server import FaultServer, held_until, serving
from stack import Gateway, gateway

from gateway.adapters.sql.access import new_key

INVOKE = "/tasks/manners/invoke"
ONE_A_DAY = '[[quota]]\nresource = "requests"\nlimit = 1\nper = "day"\nscope = ["task"]\n\n'
PATIENCE_S = 60.0
"""More than anything takes that happens at all."""


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """A file with an edit in it; written anew, as editors do, and put back at the end of the block."""
    before = path.read_text("utf-8")
    assert old in before
    path.write_text(before.replace(old, new), "utf-8")
    try:
        yield
    finally:
        path.write_text(before, "utf-8")


async def becomes(client: httpx.AsyncClient, path: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Ask a page until what it says holds. Each try is a request, so nothing sleeps."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds((await client.get(path)).json()):
            pass


async def everywhere(up: Gateway, key: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until every worker says so: twenty connections one after the other, each of which may reach any of them."""
    async with asyncio.timeout(PATIENCE_S):
        agreeing = 0
        while agreeing < 20:
            async with up.client(key) as client:
                agreeing = agreeing + 1 if holds((await client.get("/tasks/manners")).json()) else 0


async def ask(up: Gateway, key: str, message: str) -> dict[str, Any]:
    async with up.client(key) as client:
        response = await client.post(INVOKE, json={"input": {"message": message}})
    assert response.status_code == 200
    return response.json()["metadata"]


async def test_an_edit_is_served_by_every_worker_and_can_be_looked_up(
    home: Path, database: str, valkey: str, model: FaultServer
) -> None:
    """Every worker of every replica answers by the new rules; old and new version stand in the task's history."""
    key = await new_key(database, "etiquette", frozenset({"invoke", "read"}))
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm, workers="2") as one, gateway(home, database, valkey, llm) as two:
            before = await ask(one, key, "Thank you")
            assert before["label"] == "fine"
            old = before["fingerprint"]

            def is_new(said: dict[str, Any]) -> bool:
                return bool(said["fingerprint"] != old)

            with edited(home / "tasks/manners/rules.toml", 'label = "fine"', 'label = "rude"'):
                for up in (one, two):
                    await everywhere(up, key, is_new)
                    after = await ask(up, key, "Thank you")
                    assert (after["label"], after["cached"]) == ("rude", up is two)
                async with one.client(key) as client:
                    listed = (await client.get("/tasks/manners/versions")).json()["versions"]
                    looked_up = (await client.get(f"/tasks/manners/versions/{old}")).json()
            assert [(v["fingerprint"], v["current"]) for v in listed] == [(after["fingerprint"], True), (old, False)]
            assert 'label = "fine"' in looked_up["config"]["files"]["rules.toml"]["text"]


async def test_a_bad_edit_changes_nothing_and_is_shown(
    home: Path, database: str, valkey: str, model: FaultServer
) -> None:
    """The last good version goes on answering; health names the problems, degraded and still 200, until mended."""
    key = await new_key(database, "etiquette", frozenset({"invoke", "read"}))
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm) as up:
            before = await ask(up, key, "Thank you")
            async with up.client(key) as client:
                with edited(home / "tasks/manners/task.toml", 'model = "tiny"', 'model = "tinny"'):
                    await becomes(client, "/health/ready", lambda said: said["parts"]["config"]["status"] == "degraded")
                    response = await client.get("/health/ready")
                    assert (response.status_code, response.json()["status"]) == (200, "degraded")
                    assert "there is no model `tinny`" in response.json()["parts"]["config"]["detail"]
                    assert (await ask(up, key, "Thank you"))["fingerprint"] == before["fingerprint"]
                await becomes(client, "/health/ready", lambda said: said["parts"]["config"]["status"] == "ok")
            assert "config_refused" in up.child.log.read_text("utf-8")


async def test_a_request_under_way_ends_on_the_version_it_began_with(
    home: Path, database: str, valkey: str, model: FaultServer
) -> None:
    """The task changes while the model thinks: the answer names, and is judged by, the version it began with."""
    key = await new_key(database, "etiquette", frozenset({"invoke", "read"}))
    think = asyncio.Event()
    model.script.append(held_until(think))
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm) as up:
            async with up.client(key) as client:
                first = (await client.get("/tasks/manners")).json()["fingerprint"]
                asked = asyncio.create_task(ask(up, key, "Under way"))
                await asyncio.wait_for(model.hung.wait(), PATIENCE_S)
                with edited(home / "tasks/manners/task.toml", 'rude = "review"', 'rude = "block"'):
                    await becomes(client, "/tasks/manners", lambda said: said["fingerprint"] != first)
                    think.set()
                    answer = await asked
                    assert (answer["fingerprint"], answer["action"]) == (first, "review")
                    assert (await ask(up, key, "Afterwards"))["action"] == "block"


async def test_prices_and_quotas_follow_without_a_new_version(
    home: Path, database: str, valkey: str, model: FaultServer
) -> None:
    """What shapes no answer changes no fingerprint, and holds from the next request on."""
    key = await new_key(database, "etiquette", frozenset({"invoke", "read"}))
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm) as up:
            one = await ask(up, key, "What does it cost?")
            with edited(home / "models.toml", '"1.00"', '"0.00"'):
                async with asyncio.timeout(PATIENCE_S):
                    for attempt in count():
                        two = await ask(up, key, f"And what now? {attempt}")
                        if two["usage"]["cost"] == "0.000002000":  # what the one token of the answer costs
                            break
                assert one["usage"]["cost"] > two["usage"]["cost"]
                assert two["fingerprint"] == one["fingerprint"]
            with edited(home / "tasks/manners/task.toml", "[cache]", f"{ONE_A_DAY}[cache]"):
                async with up.client(key) as client, asyncio.timeout(PATIENCE_S):
                    for attempt in count():
                        refused = await client.post(INVOKE, json={"input": {"message": f"Once more {attempt}"}})
                        if refused.status_code == 429:
                            break
                    assert refused.json()["code"] == "quota_exceeded"
                    now = (await client.get("/tasks/manners")).json()
                    assert now["fingerprint"] == one["fingerprint"]


async def test_the_next_prompt_is_another_version(home: Path, database: str, valkey: str, model: FaultServer) -> None:
    """A prompt that supersedes another is what the model is asked, as soon as the task names it."""
    key = await new_key(database, "etiquette", frozenset({"invoke", "read"}))
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm) as up:
            before = await ask(up, key, "Is this it?")
            (home / "prompts/manners/ask.v2.md").write_text("Would grandmother mind?\n---\n{{message}}\n", "utf-8")
            with edited(home / "tasks/manners/task.toml", "manners/ask.v1", "manners/ask.v2"):
                async with up.client(key) as client:
                    await becomes(client, "/tasks/manners", lambda said: said["fingerprint"] != before["fingerprint"])
                assert not (await ask(up, key, "Is this it?"))["cached"]
            asked = [seen.body["inputs"] for seen in model.asked]
            assert ["Would grandmother mind?" in prompt for prompt in asked] == [False, True]
