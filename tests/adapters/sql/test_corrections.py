"""Corrections of prices: exact to the row, once, and beside what was written."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from msgspec import structs
from sqlalchemy import delete, insert
from stories import inference, intent, invocation, new_id

from gateway.adapters.sql import tables
from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.corrections import SqlCorrections
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.usage import SqlUsage
from gateway.core.corrections import Correction
from gateway.core.errors import Conflict, InvalidInput
from gateway.core.inference import Usage
from gateway.core.reports import total

ZONE = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 10, 25, 12, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 3, 12, tzinfo=UTC)
CORRECTION = Correction(
    model="moderation-llm",
    start=date(2026, 10, 1),
    end=date(2026, 11, 1),
    input_per_million="0.05",
    output_per_million="0.20",
    reason="the price was entered twice as high",
)


@pytest.fixture
def corrections(database: Database) -> SqlCorrections:
    """Corrections on the database under test."""
    return SqlCorrections(database, ZONE, new_id)


async def spend(
    ledger: SqlLedger, database: Database, at: datetime, *usages: Usage, model: str = "moderation-llm"
) -> None:
    """One inference with a call of each usage; the days before November are closed then."""
    for usage in usages:
        asked = invocation(received_at=at)
        made = intent(asked, created_at=at, model=model)
        told = inference(asked, made)
        prefilter, chain = told.attempts
        call = structs.replace(chain.calls[0], usage=usage)
        await ledger.record(structs.replace(told, attempts=(prefilter, structs.replace(chain, calls=(call,)))))
    await SqlBooks(database, ZONE).close_days(NOVEMBER)


async def test_the_difference_is_that_of_each_row(
    ledger: SqlLedger, database: Database, corrections: SqlCorrections
) -> None:
    """Each call is rounded up for itself: three calls of 7 tokens cost three times 1 nano-unit, not 2 together."""
    await spend(ledger, database, NOON, Usage(7, 0, 1000), Usage(7, 0, 1000), Usage(7, 0, 1000))
    cheap = structs.replace(CORRECTION, input_per_million="0.00005")
    found = await corrections.write(cheap, NOVEMBER)
    assert [(each.corrects, each.day, each.cost_nano) for each in found] == [
        (date(2026, 10, 25), date(2026, 11, 3), 3 * 1 - 3000)
    ]
    assert await corrections.differing() == []


async def test_a_correction_of_a_correction_counts_both(
    ledger: SqlLedger, database: Database, corrections: SqlCorrections
) -> None:
    """Made again it finds nothing; at the first price it gives everything back; reports carry the sum of all."""
    await spend(ledger, database, NOON, Usage(1_000_000, 0, 100_000_000))
    await spend(ledger, database, NOON + timedelta(days=1), Usage(5, 0, 5), model="another")
    books = SqlBooks(database, ZONE)
    october = (date(2026, 10, 1), date(2026, 11, 1))
    before = await books.days(*october)
    first = await corrections.write(CORRECTION, NOVEMBER)
    assert [each.cost_nano for each in first] == [-50_000_000]
    assert await corrections.write(CORRECTION, NOVEMBER) == []
    back = await corrections.write(structs.replace(CORRECTION, input_per_million="0.10"), NOVEMBER)
    assert [(each.cost_nano, each.position) for each in back] == [(50_000_000, 2)]
    third = await corrections.write(CORRECTION, NOVEMBER)
    assert await books.days(*october) == before
    charged = await books.days(date(2026, 11, 1), date(2026, 12, 1))
    assert total(charged)["cost_nano"] == sum(each.cost_nano for each in third) == -50_000_000
    assert {(row.kind, row.corrects) for row in charged} == {("adjustment", "2026-10-25")}
    own = await SqlUsage(database, ZONE).roll_up(NOON - timedelta(days=1), NOVEMBER + timedelta(days=1), "acme")
    assert {row.model: row.cost_nano for row in own} == {None: 0, "another": 5, "moderation-llm": 50_000_000}


async def test_two_corrections_at_once_are_not_added_up(
    ledger: SqlLedger, database: Database, corrections: SqlCorrections
) -> None:
    """However many write at the same time, the difference is charged once; who comes too late is told or finds none."""
    await spend(ledger, database, NOON, Usage(1_000_000, 0, 100_000_000))
    await asyncio.gather(*(corrections.write(CORRECTION, NOVEMBER) for _ in range(4)), return_exceptions=True)
    charged = await SqlBooks(database, ZONE).days(date(2026, 11, 1), date(2026, 12, 1))
    assert total(charged)["cost_nano"] == -50_000_000


async def test_days_that_are_not_over_or_gone_are_refused(
    ledger: SqlLedger, database: Database, corrections: SqlCorrections
) -> None:
    """Neither today nor a day of which retention took rows can be computed row by row."""
    await spend(ledger, database, NOON, Usage(7, 0, 1))
    with pytest.raises(Conflict, match="not over"):
        await corrections.find(structs.replace(CORRECTION, end=date(2026, 11, 4)), NOVEMBER)
    async with database.begin() as connection:
        if database.postgres:
            await connection.exec_driver_sql("ALTER TABLE model_call DISABLE TRIGGER USER")
        await connection.execute(delete(tables.model_call))
    with pytest.raises(Conflict, match="retention"):
        await corrections.find(CORRECTION, NOVEMBER)


@pytest.mark.parametrize("wrong", [{"end": date(2026, 10, 1)}, {"reason": " "}, {"input_per_million": "1,5"}])
async def test_what_is_no_correction_is_refused(corrections: SqlCorrections, wrong: dict[str, object]) -> None:
    """An interval without a day, no reason, a price that is no money."""
    with pytest.raises(InvalidInput):
        await corrections.find(structs.replace(CORRECTION, **wrong), NOVEMBER)


async def test_an_adjustment_too_many_is_found(
    ledger: SqlLedger, database: Database, corrections: SqlCorrections
) -> None:
    """`gateway ledger verify` knows a corrected day whose money does not add up."""
    await spend(ledger, database, NOON, Usage(1_000_000, 0, 100_000_000))
    (written,) = await corrections.write(CORRECTION, NOVEMBER)
    wrong = structs.asdict(written) | {"id": new_id(), "position": 2, "cost_nano": 1}
    async with database.begin() as connection:
        await connection.execute(insert(tables.price_adjustment), wrong)
    assert await corrections.differing() == [(date(2026, 10, 25), "moderation-llm")]
