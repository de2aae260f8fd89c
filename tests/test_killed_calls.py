"""A process killed at any point of a model call leaks no reservation, and no money is counted twice or forgotten."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from budgets import ledger_state
from corner import corner
from stories import intent, invocation, new_id

from gateway.adapters.redis import RedisStore
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import open_ledger
from gateway.adapters.sql.sweep import Sweeper
from gateway.core.clock import Clock
from gateway.core.errors import BudgetExceeded
from gateway.core.inference import Usage
from gateway.core.quotas import Charge, Limit, for_model_call
from gateway.core.sweep import sweep_once

_TESTS = Path(__file__).parent
_CLOCK = Clock(new_id=new_id)
LIMIT_NANO = 1000
# What the child's call costs: its estimate, and what its model really counted.
ESTIMATE_NANO, TRUTH_NANO = 120, 70

# A whole engine whose one stage makes one call; it kills itself where it is told to.
_CHILD = """
import asyncio, os, signal, sys
from contextlib import suppress
from datetime import date
from zoneinfo import ZoneInfo
from in_memory import CLOCK, moderation
from msgspec.structs import replace
from stories import invocation
from corner import corner
from gateway.adapters.redis import RedisStore
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.writers import open_writer
from gateway.core.cascade import Finding, Step
from gateway.core.engine import Engine
from gateway.core.errors import Unavailable
from gateway.core.meter import MeteredModel
from gateway.core.prices import Tariff
from gateway.core.quotas import Limit
from gateway.core.task import Price

url, redis, prefix, point = sys.argv[1:]

def die_at(here):
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)

class Ledger(SqlLedger):
    async def intend(self, intent):
        die_at("before the intent")
        await super().intend(intent)
        die_at("before the call")

    async def record(self, inference):
        die_at("before the record")
        if point == "with a record refused":
            raise Unavailable("no database")
        await super().record(inference)
        die_at("before the finish")

class Caller:
    async def run(self, item, meter):
        price = Price(start=date(2026, 1, 1), input_per_million="0.001", output_per_million="0.001")
        async with meter.call(MeteredModel("m", Tariff((price,))), "r", 100, 20) as wire:
            die_at("during the call")
            wire.settle(60, 10)
        return Finding(label="clean")

async def main():
    task = moderation()
    limit = Limit("cost", 1000, "month", ("task",))
    task = replace(task, steps=(Step(task.steps[0].stage, Caller()),), limits=(limit,))
    store = RedisStore(corner(redis, prefix))
    with suppress(Unavailable):
        await Engine(store, Ledger(open_writer(url)), CLOCK, ZoneInfo("UTC"), 8).invoke(task, invocation())
    die_at("with a record refused")
    die_at("after it all")

asyncio.run(main())
"""


@pytest.fixture
def prefix() -> str:
    """Keeps the counters of a test apart."""
    return f"{uuid4().hex}:"


@pytest.fixture
async def store(valkey: str, prefix: str) -> AsyncIterator[RedisStore]:
    """The store of a process that lives on."""
    store = RedisStore(corner(valkey, prefix))
    yield store
    await store.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Connections of the same process."""
    database = Database(database_url)
    yield database
    await database.aclose()


def budget(amount: int) -> list[Charge]:
    """A charge on the child's budget in this month."""
    limit = Limit("cost", LIMIT_NANO, "month", ("task",))
    made = intent(invocation(), estimate=Usage(0, 0, amount))
    return for_model_call([limit], made, ZoneInfo("UTC"))


async def used(store: RedisStore) -> int:
    """What stands in the budget's counter: the refusal of more than there can be says it."""
    with pytest.raises(BudgetExceeded) as refused:
        await store.reserve(new_id(), budget(LIMIT_NANO + 1))
    return LIMIT_NANO - int(str(refused.value.extra["remaining"]))


@pytest.mark.parametrize(
    ("point", "calls", "cost_nano"),
    [
        ("before the intent", 0, 0),
        ("before the call", 1, ESTIMATE_NANO),
        ("during the call", 1, ESTIMATE_NANO),
        ("before the record", 1, ESTIMATE_NANO),
        ("with a record refused", 1, ESTIMATE_NANO),
        ("before the finish", 1, TRUTH_NANO),
        ("after it all", 1, TRUTH_NANO),
    ],
)
async def test_a_kill_leaks_nothing_and_counts_nothing_twice(
    database_url: str,
    valkey: str,
    prefix: str,
    store: RedisStore,
    database: Database,
    point: str,
    calls: int,
    cost_nano: int,
) -> None:
    """After one sweep nothing is open, and counter and ledger agree; a second sweep changes nothing."""
    path = os.pathsep.join(map(str, (_TESTS, _TESTS / "web", _TESTS.parent)))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, database_url, valkey, prefix, point, env={**os.environ, "PYTHONPATH": path}
    )
    assert await child.wait() == -signal.SIGKILL
    for _ in range(2):
        await sweep_once(Sweeper(database, new_id, _CLOCK.now), store, _CLOCK, 0)
        assert await store.open_reservations(0) == []
        assert await ledger_state(database_url) == (calls, cost_nano, 0)
        assert await used(store) == cost_nano


async def test_a_reservation_whose_call_is_under_way_is_left_alone(
    database_url: str, store: RedisStore, database: Database
) -> None:
    """While there is an intent that is not old, the sweeper settles nothing; a call nobody knows of is none."""
    ledger, made = open_ledger(database_url), intent(invocation())
    await ledger.intend(made)
    await ledger.aclose()
    await store.reserve(made.id, budget(10))
    await store.reserve(new_id(), budget(20))
    sweeper = Sweeper(database, new_id, lambda: made.created_at)
    await sweep_once(sweeper, store, Clock(new_id=new_id, now=lambda: made.created_at), 0)
    assert [reservation.id for reservation in await store.open_reservations(0)] == [made.id]
    assert await used(store) == 10
