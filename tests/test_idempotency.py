"""Idempotency-Key over real processes: one answer, however often and wherever it is asked for."""

import asyncio
from pathlib import Path

import pytest
from budgets import ask, counting_model, ledger_state, message, mortal_valkey
from fault_server import held_until
from stack import gateway, make_home

from gateway.adapters.sql.access import new_key

KEY = {"idempotency-key": "order-1"}


@pytest.fixture
def home(tmp_path: Path, tiny_llm_folder: Path) -> Path:
    return make_home(tmp_path / "home", tiny_llm_folder / "tokenizer.json")


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
