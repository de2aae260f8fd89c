"""Wrong models and different versions are found out, over real processes: canaries, pinned revisions, peers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_server import FaultServer, serving
from sqlalchemy import select
from stack import MANNERS, MODELS, gateway, make_home
from tokenizers import Tokenizer

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import inference

TASK = MANNERS.replace("accept_above = 0.0", "accept_above = 0.5\naccept_below = 0.5")
CANARIES = [("You oaf", "rude"), ("Good morning", "fine")]
RUDE, FINE = {"B": -0.01, "A": -5.0}, {"A": -0.01, "B": -5.0}


class Knowing(FaultServer):
    """A model server that knows what is rude, until it is `base`: then it says the same of everything."""

    base = False

    def generated(self) -> list[Any]:
        prompt = self.asked[-1].body["inputs"]
        self.says = [FINE if self.base or "oaf" not in prompt else RUDE]
        return super().generated()


@pytest.fixture
async def models(tiny_llm_folder: Path) -> AsyncIterator[tuple[list[Knowing], list[str]]]:
    """Two replicas, and where they are."""
    servers = [Knowing(Tokenizer.from_file(str(tiny_llm_folder / "tokenizer.json"))) for _ in range(2)]
    async with AsyncExitStack() as stack:
        yield servers, [await stack.enter_async_context(serving(server)) for server in servers]


@pytest.fixture
def home(tmp_path: Path, tiny_llm_folder: Path, models: tuple[list[Knowing], list[str]]) -> Path:
    lines = [json.dumps({"input": {"message": m}, "label": label, "canary": True}) for m, label in CANARIES]
    files = {
        "tasks/manners/task.toml": TASK,
        "tasks/manners/examples.jsonl": "\n".join(lines),
        "models.toml": MODELS.replace('["env:LLM_URL"]', json.dumps(models[1])),
    }
    return make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json", files)


async def becomes(client: httpx.AsyncClient, part: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """A part of /health/ready, once it is so: by the gateway's own timers, however long a loaded machine takes."""
    async with asyncio.timeout(60):
        while True:
            said = (await client.get("/health/ready")).json()["parts"][part]
            if holds(said):
                return dict(said)
            await asyncio.sleep(0.05)


async def test_a_replica_that_serves_the_base_model_is_taken_out_until_it_is_right_again(
    home: Path, database: str, valkey: str, models: tuple[list[Knowing], list[str]]
) -> None:
    """Its canaries are wrong: it gets nothing else, health and log say so; the platform pays; and it comes back."""
    servers, urls = models
    key = await new_key(database, "shop", frozenset({"invoke"}))
    with gateway(home, database, valkey, "unused", canary_s="0.3") as up:
        async with up.client(key) as client:
            await becomes(client, "models", lambda said: said["status"] == "ok")
            servers[0].base = True
            said = await becomes(client, "models", lambda said: said["status"] == "degraded")
            assert said["detail"] == "wrong answers to canaries: `tiny`"
            for i in range(6):
                answer = await client.post("/tasks/manners/invoke", json={"input": {"message": f"Oh you oaf {i}"}})
                assert answer.json()["metadata"]["label"] == "rude"
            assert not any("Oh you" in seen.body["inputs"] for seen in servers[0].asked)
            log = up.child.log.read_text("utf-8")
            assert "fine, not rude" in log
            assert urls[0] in log
            servers[0].base = False
            await becomes(client, "models", lambda said: said["status"] == "ok")
    found = Database(database)
    async with found.begin() as connection:
        query = select(inference.c.payer_team, inference.c.cost_nano).where(inference.c.kind == "canary")
        paid = list(await connection.execute(query))
    await found.aclose()
    assert {payer for payer, _ in paid} == {"platform"}
    assert all(cost > 0 for _, cost in paid)


async def test_a_replica_with_another_model_than_pinned_gets_no_request(
    home: Path, database: str, valkey: str, models: tuple[list[Knowing], list[str]]
) -> None:
    """/info names another revision than is pinned: degraded, and only the other replica is asked."""
    servers, _ = models
    servers[0].revision = "someone-elses"
    pinned = home / "models.toml"
    pinned.write_text(
        pinned.read_text("utf-8").replace('model_id = "tiny"', 'model_id = "tiny"\nrevision = "r1"'), "utf-8"
    )
    (home / "tasks/manners/examples.jsonl").unlink()
    key = await new_key(database, "shop", frozenset({"invoke"}))
    with gateway(home, database, valkey, "unused") as up:
        async with up.client(key) as client:
            await becomes(client, "models", lambda said: said["status"] == "degraded")
            for i in range(4):
                await client.post("/tasks/manners/invoke", json={"input": {"message": f"Number {i}"}})
    assert [len(server.asked) for server in servers] == [0, 4]


async def test_replicas_that_serve_different_versions_are_shown_until_they_agree(
    home: Path, tmp_path: Path, database: str, valkey: str, tiny_llm_folder: Path
) -> None:
    """Two gateways on two homes: health of each names the task that differs, and nothing once both are the same."""
    other = make_home(tmp_path / "other", tiny_llm_folder / "tokenizer.json")
    for name in ("models.toml", "tasks/manners/examples.jsonl"):
        (other / name).write_bytes((home / name).read_bytes())
    with gateway(home, database, valkey, "unused") as one, gateway(other, database, valkey, "unused") as two:
        async with one.client("none") as first, two.client("none") as second:
            for client in (first, second):
                said = await becomes(client, "peers", lambda said: said["status"] == "degraded")
                assert said["detail"] == "replicas serve different versions of `manners`"
            (other / "tasks/manners/task.toml").write_text(TASK, "utf-8")
            for client in (first, second):
                await becomes(client, "peers", lambda said: said["status"] == "ok")
