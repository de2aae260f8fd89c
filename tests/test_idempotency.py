"""Idempotency-Key over real processes: one answer, however often and wherever it is asked for."""

import asyncio
import uuid
from pathlib import Path

import pytest
from budgets import ask, counting_model, ledger_state, message, mortal_valkey
from fault_server import FaultServer, Seen, held_until, status
from stack import gateway

from gateway.adapters.sql.access import new_key

KEY = {"idempotency-key": "order-1"}
# The claims of either database are the matter of tests/core/test_asked_again.py.
on_postgres = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@on_postgres
async def test_a_key_is_answered_once_over_processes_and_restarts(
    home: Path, database_url: str, tiny_llm_folder: Path
) -> None:
    """Duplicates at two gateways run once, and all get that answer; so does a later one when the store has lost
    everything; another input is refused; a team has keys of its own.
    """
    shop = await new_key(database_url, "shop", frozenset({"invoke"}))
    other = await new_key(database_url, "other", frozenset({"invoke"}))
    async with counting_model(tiny_llm_folder) as (model, llm):
        with (
            mortal_valkey() as valkey,
            gateway(home, database_url, valkey.url, llm) as one,
            gateway(home, database_url, valkey.url, llm) as two,
        ):
            async with one.client(shop) as first, two.client(shop) as second, one.client(other) as third:
                go = asyncio.Event()
                model.script.append(held_until(go))
                asked = [asyncio.create_task(ask(c, message(1), **KEY)) for c in (first, second, first, second)]
                await model.hung.wait()
                go.set()
                said = await asyncio.gather(*asked)
                assert len({metadata["run_id"] for _, metadata in said}) == 1
                assert len({response.text for response, _ in said}) == 1
                replayed = [response.headers.get("idempotent-replayed") for response, _ in said]
                assert sorted(replayed, key=str) == [None, "true", "true", "true"]
                valkey.stop()
                valkey.start()
                response, again = await ask(second, message(1), **KEY)
                assert (again, response.headers["idempotent-replayed"]) == (said[0][1], "true")
                refused, _ = await ask(first, message(2), **KEY)
                assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
                _, theirs = await ask(third, message(1), **KEY)
                assert theirs["run_id"] != again["run_id"]
    assert (await ledger_state(database_url))[0] == len(model.asked) == 2


@on_postgres
async def test_a_key_is_free_again_where_the_first_failed(
    home: Path, database_url: str, valkey: str, tiny_llm_folder: Path
) -> None:
    """In a task without actions the first request fails while a second one waits: the second runs, and is answered."""
    task = home / "tasks/manners/task.toml"
    before, _, after = task.read_text("utf-8").partition("[actions]")
    task.write_text(f"{before}[cache]{after.partition('[cache]')[2]}", "utf-8")
    # A team of its own: the runs on both databases share a Valkey, and with it the answers that a team was given.
    shop = await new_key(database_url, f"shop-{uuid.uuid4().hex}", frozenset({"invoke"}))
    async with counting_model(tiny_llm_folder) as (model, llm):
        with gateway(home, database_url, valkey, llm) as one, gateway(home, database_url, valkey, llm) as two:
            async with one.client(shop) as first, two.client(shop) as second:
                fail = asyncio.Event()

                async def refuse_later(server: FaultServer, seen: Seen, writer: asyncio.StreamWriter) -> None:
                    server.hung.set()
                    await fail.wait()
                    status(422)(server, seen, writer)

                model.script.append(refuse_later)
                failing = asyncio.create_task(ask(first, message(3), **KEY))
                await asyncio.wait(
                    {failing, asyncio.create_task(model.hung.wait())}, return_when=asyncio.FIRST_COMPLETED
                )
                assert not failing.done(), failing.result()[0].text
                waiting = asyncio.create_task(ask(second, message(3), **KEY))
                await second.get("/health/live")
                fail.set()
                (failed, _), (answered, metadata) = await failing, await waiting
    assert (failed.status_code, answered.status_code) == (502, 200)
    assert (metadata["status"], answered.headers.get("idempotent-replayed")) == ("accepted", None)
