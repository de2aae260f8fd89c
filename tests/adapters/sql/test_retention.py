"""Retention: closed months go, the sums stay, and everything still adds up."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from stories import TRUTH, inference, intent, invocation

from gateway.adapters.exports import to_csv
from gateway.adapters.sql.books import SqlBooks, Totals
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.partitions import first_id
from gateway.adapters.sql.retention import SqlRetention
from gateway.adapters.sql.savings import SqlTraffic
from gateway.adapters.sql.sweep import Sweeper
from gateway.adapters.sql.tables import model_call, usage_day
from gateway.adapters.sql.usage import SqlUsage
from gateway.core.errors import Conflict, InvalidInput
from gateway.core.reports import UsageDay, day_start, focus_rows, total

ZONE = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 7, 15, 12, tzinfo=UTC)
# In Berlin it is July already.
EDGE = datetime(2026, 6, 30, 23, 30, tzinfo=UTC)
MOMENTS = (datetime(2026, 5, 31, 12, tzinfo=UTC), EDGE - timedelta(days=9), EDGE, datetime(2026, 7, 2, 12, tzinfo=UTC))


@pytest.fixture
def books(database: Database) -> SqlBooks:
    """In a zone whose months are not those of UTC."""
    return SqlBooks(database, ZONE)


@pytest.fixture
def retention(database: Database) -> SqlRetention:
    """Of the same zone."""
    return SqlRetention(database, ZONE)


def at(moment: datetime, number: int) -> str:
    """An id of that moment."""
    return first_id(moment)[:-12] + f"{number:012x}"


async def spend(ledger: SqlLedger, moment: datetime, call_after: timedelta = timedelta(), number: int = 1) -> None:
    """An inference that began then, whose call began so much later."""
    asked = invocation(id=at(moment, number), received_at=moment)
    called = moment + call_after
    made = intent(asked, id=at(called, number), attempt_id=at(moment, 100 + number), created_at=called)
    await ledger.intend(made)
    await ledger.record(inference(asked, made))


def export(rows: list[UsageDay]) -> bytes:
    """As `gateway usage close` does."""
    focus = focus_rows(rows, "EUR", ZONE)
    return to_csv(focus, list(focus[0]))


def agrees(totals: Totals, reported: list[UsageDay]) -> bool:
    """What `gateway ledger verify` asks of the rows."""
    calls, attempts, inferences = totals.calls.cost_nano, totals.attempts.cost_nano, totals.inferences.cost_nano
    off = (totals.attempts_off, totals.inferences_off, len(totals.days_off), len(totals.months_off))
    return (
        calls == attempts == inferences
        and calls + totals.removed.cost_nano == total(reported)["cost_nano"]
        and off == (0, 0, 0, 0)
    )


async def everything(books: SqlBooks) -> tuple[Totals, list[UsageDay]]:
    """What verify compares."""
    return await books.totals(), await books.days(date(2026, 1, 1), date(2027, 1, 1))


async def call_ids(database: Database) -> list[str]:
    """Calls that are still rows."""
    async with database.begin() as connection:
        return list((await connection.execute(select(model_call.c.id).order_by(model_call.c.id))).scalars())


async def test_a_month_that_is_not_closed_is_kept(
    ledger: SqlLedger, database: Database, books: SqlBooks, retention: SqlRetention
) -> None:
    """Refused with the months' names, before anything is removed; the last hour of June in UTC is July in Berlin."""
    for moment in MOMENTS[:3]:
        await spend(ledger, moment)
    await books.close_month(date(2026, 5, 1), NOW, export)
    with pytest.raises(Conflict, match="2026-06, 2026-07"):
        await retention.write(1, datetime(2026, 8, 15, tzinfo=UTC))
    with pytest.raises(Conflict, match="2026-06"):
        await retention.find(1, datetime(2026, 8, 15, tzinfo=UTC))
    assert len(await call_ids(database)) == 3


async def test_what_remains_adds_up_with_what_was_removed(
    ledger: SqlLedger, database: Database, books: SqlBooks, retention: SqlRetention
) -> None:
    """Looking removes nothing. Removing twice removes once. Reports, exports and the sums of all are as before."""
    for moment in MOMENTS:
        await spend(ledger, moment)
    # An inference of May whose call is of June, on either side of the boundary.
    await spend(ledger, datetime(2026, 5, 31, 23, 59, 59, tzinfo=UTC), timedelta(seconds=2), number=7)
    closed = [await books.close_month(date(2026, month, 1), NOW, export) for month in (5, 6)]
    before, reported = await everything(books)
    assert agrees(before, reported)
    looked = await retention.find(1, NOW)
    assert (looked.months, looked.rows["model_call"]) == ([date(2026, 5, 1), date(2026, 6, 1)], 1)
    assert await call_ids(database) == await call_ids(database)
    assert (await books.totals()).removed.rows == 0
    first, again = await retention.write(1, NOW), await retention.write(1, NOW)
    assert (first.removed.calls.rows, again.removed.calls.rows) == (2, 0)
    after, reported_after = await everything(books)
    assert agrees(after, reported_after)
    assert reported_after == reported
    assert after.removed.cost_nano == 2 * TRUTH.cost_nano
    assert after.calls + after.removed == before.calls
    assert [await books.close_month(each.month, NOW, export) for each in closed] == closed


async def test_removing_again_adds_to_what_was_removed(
    ledger: SqlLedger, books: SqlBooks, retention: SqlRetention
) -> None:
    """Month after month: each call is in the rows or in the removed sums, never in both."""
    for moment in MOMENTS:
        await spend(ledger, moment)
    for month, now in ((5, NOW), (6, NOW), (7, NOW + timedelta(days=30))):
        await books.close_month(date(2026, month, 1), now, export)
    for now, left in ((NOW, 3), (NOW + timedelta(days=31), 1), (NOW + timedelta(days=62), 0)):
        await retention.write(1, now)
        totals, reported = await everything(books)
        assert agrees(totals, reported)
        assert (totals.calls.rows, totals.removed.rows) == (left, 4 - left)


async def test_what_the_sweeper_found_days_later_adds_up(
    ledger: SqlLedger, database: Database, books: SqlBooks, retention: SqlRetention
) -> None:
    """A call of May that became part of an inference of June: both count as removed, and nothing differs."""
    moment = datetime(2026, 5, 30, tzinfo=UTC)
    asked = invocation(id=at(moment, 1), received_at=moment)
    orphan = intent(asked, id=at(moment, 2), attempt_id=at(moment, 3), created_at=moment)
    await ledger.record(inference(asked))
    await ledger.intend(orphan)
    late = datetime(2026, 6, 4, tzinfo=UTC)
    ids = iter(range(10, 99))
    await Sweeper(database, lambda: at(late, next(ids)), lambda: late).unsettle([orphan])
    await spend(ledger, datetime(2026, 6, 20, tzinfo=UTC), number=9)
    for month in (5, 6):
        await books.close_month(date(2026, month, 1), NOW, export)
    await retention.write(1, NOW)
    totals, reported = await everything(books)
    assert agrees(totals, reported)
    assert (totals.removed_unsettled.rows, totals.calls.rows) == (1, 1)


async def test_a_team_sees_whole_days_of_what_was_removed(
    ledger: SqlLedger, database: Database, books: SqlBooks, retention: SqlRetention
) -> None:
    """`GET /usage` over whole days is the same before and after retention; a part of a removed day is refused."""
    for moment in MOMENTS:
        await spend(ledger, moment)
    for month in (5, 6):
        await books.close_month(date(2026, month, 1), NOW, export)
    usage, first = SqlUsage(database, ZONE), day_start(date(2026, 5, 1), ZONE)
    before = await usage.roll_up(first, NOW, None)
    assert sum(row.cost_nano for row in before) == len(MOMENTS) * TRUTH.cost_nano
    await retention.write(1, NOW)
    assert await usage.roll_up(first, NOW, None) == before
    assert await usage.roll_up(first, NOW, "nobody") == []
    with pytest.raises(InvalidInput, match="whole days"):
        await usage.roll_up(first + timedelta(hours=1), NOW, None)
    with pytest.raises(Conflict, match="only sums"):
        await SqlTraffic(database, ZONE).of("message-moderation", date(2026, 5, 1), date(2026, 7, 1))


@pytest.mark.parametrize("harm", ["a removed day's sum", "an export", "rows that retention did not remove"])
async def test_what_was_tampered_with_is_seen(
    ledger: SqlLedger, database: Database, books: SqlBooks, retention: SqlRetention, harm: str
) -> None:
    """After retention as before it: whoever takes rows, sums or bytes away makes a difference."""
    for moment in MOMENTS:
        await spend(ledger, moment)
    for month in (5, 6):
        await books.close_month(date(2026, month, 1), NOW, export)
    await retention.write(1, NOW)
    await books.close_days(NOW)
    async with database.begin() as connection:
        await _harm(connection, harm, postgres=database.postgres)
    assert not agrees(*await everything(books))


async def _harm(connection: AsyncConnection, harm: str, *, postgres: bool) -> None:
    """As somebody with the database in hand can."""
    doubled = "content || content" if postgres else "CAST(content || content AS BLOB)"
    if postgres:
        await connection.execute(text("SET session_replication_role = replica"))
    else:
        for table in ("usage_close", "model_call", "inference", "attempt"):
            await connection.execute(text(f"DROP TRIGGER IF EXISTS {table}_append_only"))
    if harm == "a removed day's sum":
        await connection.execute(delete(usage_day).where(usage_day.c.day == date(2026, 5, 31)))
    elif harm == "an export":
        await connection.execute(text("UPDATE usage_close SET content = " + doubled))
    else:
        for table in ("model_call", "attempt", "inference"):
            await connection.execute(text(f"DELETE FROM {table}"))
