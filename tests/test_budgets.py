"""Budgets over real processes: two gateways, one Valkey that dies, and a model that counts."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from budgets import SLACK_NANO, ask, counting_model, ledger_state, limit_team, message, mortal_valkey
from stack import gateway

from gateway.adapters.sql.access import new_key
from gateway.app import Process
from gateway.core.prices import from_nano, to_nano
from gateway.core.problems import InvalidConfig
from gateway.settings import Settings


async def test_a_budget_set_while_gateways_run_survives_a_store_that_lost_everything(
    home: Path, postgres_url: str, tiny_llm_folder: Path
) -> None:
    """A team limit holds on both replicas without restart and counts what was spent before; after Valkey came back
    empty, what is left of the budget is what the ledger says, to the nano-dollar.
    """
    from stack import MIGRATIONS

    from gateway.adapters.sql.migrate import upgrade

    await upgrade(postgres_url, MIGRATIONS)
    key = await new_key(postgres_url, "shop", frozenset({"invoke", "admin"}))
    async with counting_model(tiny_llm_folder) as (model, llm):
        with (
            mortal_valkey() as valkey,
            gateway(home, postgres_url, valkey.url, llm) as one,
            gateway(home, postgres_url, valkey.url, llm) as two,
        ):
            async with one.client(key) as first, two.client(key) as second:
                _, paid = await ask(first, message(0))
                price = to_nano(paid["usage"]["cost"])
                budget = {"resource": "cost", "limit": from_nano(5 * (price + SLACK_NANO)), "per": "month"}
                await limit_team([one, two], key, "shop", budget)
                for number in (1, 2):
                    assert (await ask(second, message(number)))[1]["status"] == "accepted"
                os.kill(valkey.pid, signal.SIGKILL)
                valkey.start()
                clients = [first, second] * 6
                said = await asyncio.gather(*(ask(c, message(n)) for n, c in enumerate(clients, 10)))
            outcomes = [(metadata["status"], metadata["reason"]) for _, metadata in said]
            assert sorted(outcomes, key=str) == [("accepted", None)] * 2 + [("deferred", "budget_exceeded")] * 10
            assert len(model.asked) == 5
    assert await ledger_state(postgres_url) == (5, 5 * price, 0)


def test_without_a_store_nothing_starts(home: Path) -> None:
    """Budgets that nobody can count are no budgets: a gateway without GATEWAY_REDIS_URL is refused at start-up."""
    with pytest.raises(InvalidConfig, match="GATEWAY_REDIS_URL"):
        Process(Settings(home=str(home)))
