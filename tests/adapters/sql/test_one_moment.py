"""What is read together is of one moment, while rows go from table to table: on SQLite as on Postgres."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from stories import TRUTH, inference, intent, invocation

from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.spending import SqlSpending
from gateway.adapters.sql.tables import inference as inferences
from gateway.core.reports import total

LOOKS = 30


class Traffic:
    """Calls that never stop: each is intended, then recorded. `intended` are those whose intent is durable."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.intended = 0
        self._ledger = ledger

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Until the end of the block."""
        going = asyncio.create_task(self._go())
        try:
            yield
        finally:
            going.cancel()

    async def _go(self) -> None:
        while True:
            asked = invocation()
            made = intent(asked)
            await self._ledger.intend(made)
            self.intended += 1
            await self._ledger.record(inference(asked, made))


async def test_a_snapshot_sees_nothing_that_comes_later(ledger: SqlLedger, database: Database) -> None:
    """Whatever is committed between two reads of it."""
    count = select(func.count()).select_from(inferences)
    async with database.snapshot() as connection:
        before = (await connection.execute(count)).scalar_one()
        await ledger.record(inference(invocation()))
        assert (await connection.execute(count)).scalar_one() == before
    async with database.snapshot() as connection:
        assert (await connection.execute(count)).scalar_one() == before + 1


async def test_budgets_that_are_rebuilt_miss_no_call(ledger: SqlLedger, database: Database) -> None:
    """A call is under way or recorded, and never neither, while it goes from the one table to the other."""
    traffic, spending = Traffic(ledger), SqlSpending(database)
    start = datetime.now(UTC) - timedelta(hours=1)
    async with traffic.running():
        for _ in range(LOOKS):
            known = traffic.intended
            seen = await spending.snapshot([start])
            recorded = sum(each.usage.cost_nano for each in seen.since[start]) // TRUTH.cost_nano
            assert recorded + len(seen.intents) >= known


async def test_verify_agrees_under_load(ledger: SqlLedger, database: Database) -> None:
    """Every sum is of the same moment as the others, and as the reports: live traffic makes no difference."""
    traffic, books = Traffic(ledger), SqlBooks(database, ZoneInfo("UTC"))
    async with traffic.running():
        for _ in range(LOOKS):
            totals = await books.totals()
            assert totals.calls.cost_nano == totals.attempts.cost_nano == totals.inferences.cost_nano
            assert total(totals.reported)["cost_nano"] == totals.calls.cost_nano
            assert (totals.attempts_off, totals.inferences_off, totals.days_off) == (0, 0, [])
