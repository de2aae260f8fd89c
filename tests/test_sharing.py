"""Identical requests in flight at two gateway processes: one run, also when the process that has it dies."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from budgets import ask, counting_model, message
from fault_server import hang, held_until
from stack import WORDS, gateway, make_home

from gateway.adapters.sql.access import new_key
from gateway.core.flights import LEASE_S

DEADLINE_S, PATIENCE_S = 600, 60.0
"""What the model has; and more than anything takes that waits for less."""
PATIENT = {"orphan_after_s": str(2 * DEADLINE_S)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A task whose model may take long: who waits for it must not owe its answer to a deadline."""
    home = make_home(tmp_path / "home", WORDS / "tokenizer.json")
    task = home / "tasks/manners/task.toml"
    slow = f"min_label_mass = 0.0\ntimeout_s = {DEADLINE_S}\ndeadline_s = {DEADLINE_S}"
    task.write_text(task.read_text("utf-8").replace("min_label_mass = 0.0", slow), "utf-8")
    return home


async def test_two_processes_share_one_run(home: Path, database: str, valkey: str) -> None:
    """Four requests at two gateways while the model thinks, for longer than a claim lasts: one call of the model, one
    miss, the rest shared, each with its own review; another team's request is a run of its own.
    """
    shop = await new_key(database, "shop", frozenset({"invoke"}))
    other = await new_key(database, "other", frozenset({"invoke"}))
    async with counting_model(WORDS) as (model, llm):
        served = (home, database, valkey, llm)
        with gateway(*served, **PATIENT) as one, gateway(*served, **PATIENT) as two:
            async with one.client(shop) as first, two.client(shop) as second, two.client(other) as third:
                think = asyncio.Event()
                model.script.append(held_until(think))
                asked = [asyncio.create_task(ask(first, message(1)))]
                await asyncio.wait_for(model.hung.wait(), PATIENCE_S)
                asked += [asyncio.create_task(ask(client, message(1))) for client in (second, second, first)]
                began = time.monotonic()
                theirs, _ = await ask(third, message(1))
                while time.monotonic() < began + LEASE_S + 0.5:  # each look is a request: the gateways are the clock
                    await second.get("/health/live")
                assert not any(task.done() for task in asked)
                think.set()
                said = await asyncio.gather(*asked)
    states = [response.headers["x-gateway-cache"] for response, _ in said]
    assert (states, theirs.headers["x-gateway-cache"]) == (["miss", "shared", "shared", "shared"], "miss")
    assert len(model.asked) == 2
    assert len({metadata["score"] for _, metadata in said}) == 1
    assert len({metadata["review_id"] for _, metadata in said} - {None}) == 4
    assert [metadata["usage"]["input_tokens"] > 0 for _, metadata in said] == [True, False, False, False]


async def test_the_others_run_when_the_one_dies(home: Path, database: str, valkey: str) -> None:
    """The process that has the run is killed: within the lease of its claim another one runs itself, and answers."""
    shop = await new_key(database, "shop", frozenset({"invoke"}))
    async with counting_model(WORDS) as (model, llm):
        served = (home, database, valkey, llm)
        with gateway(*served, **PATIENT) as one, gateway(*served, **PATIENT) as two:
            async with one.client(shop) as first, two.client(shop) as second:
                model.script.append(hang)
                lost = asyncio.create_task(ask(first, message(2)))
                await asyncio.wait_for(model.hung.wait(), PATIENCE_S)
                waiting = [asyncio.create_task(ask(second, message(2))) for _ in range(2)]
                await second.get("/health/ready")
                os.killpg(one.child.process.pid, signal.SIGKILL)
                said = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
                with pytest.raises(httpx.TransportError):
                    await lost
    assert sorted(response.headers["x-gateway-cache"] for response, _ in said) == ["miss", "shared"]
    assert len(model.asked) == 2
