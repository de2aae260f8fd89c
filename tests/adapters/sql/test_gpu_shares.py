"""GPU-hours in the database: shared out once, whoever does it and however often."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import structs
from sqlalchemy import insert
from stories import inference, intent, invocation, new_id

from gateway.adapters.exports import to_csv
from gateway.adapters.sql import tables
from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.corrections import SqlCorrections
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.gpu_hours import SqlGpuHours
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.spending import SqlSpending
from gateway.adapters.sql.sweep import Sweeper
from gateway.adapters.sql.usage import SqlUsage
from gateway.core.corrections import Correction, HourCorrection
from gateway.core.errors import Conflict
from gateway.core.inference import Caller
from gateway.core.prices import Tariff
from gateway.core.reports import focus_rows, grouped, total
from gateway.core.task import Price

# Its days begin at 18:30 UTC, in the middle of an hour.
ZONE = ZoneInfo("Asia/Kolkata")
START = datetime(2026, 10, 20, tzinfo=UTC)
TARIFF = Tariff((Price(start=START.date(), per_gpu_hour="3.00", tokens_per_gpu_hour=1000),))
TARIFFS = {
    "own-llm": TARIFF,
    "moderation-llm": Tariff((Price(start=START.date(), input_per_million="1", output_per_million="1"),)),
}
BILL = 3_000_000_000


@pytest.fixture
def hours(database: Database) -> SqlGpuHours:
    """The hours of the database under test."""
    return SqlGpuHours(database, ZONE)


def made_at(at: datetime, team: str, tokens: int, **changed: Any) -> Any:
    """An inference of a team, with one call to the model that is paid by the hour, and its intent."""
    asked = invocation(received_at=at, caller=Caller(team, "0" * 16, frozenset()), payer_team=team, **changed)
    estimate = TARIFF.usage(tokens, 0, at)
    made = intent(asked, created_at=at, model="own-llm", estimate=estimate, gpu_hour_nano=BILL)
    told = inference(asked, made)
    prefilter, chain = told.attempts
    call = structs.replace(chain.calls[0], usage=estimate, gpu_hour_nano=BILL)
    return made, structs.replace(told, attempts=(prefilter, structs.replace(chain, calls=(call,))))


async def use(ledger: SqlLedger, at: datetime, team: str, tokens: int) -> None:
    """Record it."""
    _, told = made_at(at, team, tokens)
    await ledger.record(told)


async def test_an_hour_is_shared_out_by_tokens(ledger: SqlLedger, database: Database, hours: SqlGpuHours) -> None:
    """To the nano-unit, with the idle part for the platform; the next hour, which nobody used, is idle whole."""
    await use(ledger, START + timedelta(minutes=1), "acme", 100)
    await use(ledger, START + timedelta(minutes=59, seconds=59), "bolt", 233)
    lines = await hours.allocate(TARIFFS, START + timedelta(hours=2, minutes=11))
    assert [(line.hour.hour, line.payer_team, line.task, line.tokens, line.cost_nano) for line in lines] == [
        (0, "acme", "message-moderation", 100, 300_000_000),
        (0, "bolt", "message-moderation", 233, 699_000_000),
        (0, "platform", "", 667, 2_001_000_000),
        (1, "platform", "", 1000, BILL),
    ]
    rows = await SqlBooks(database, ZONE).days(START.date(), START.date() + timedelta(days=1))
    by_kind = {line.names[0]: line.sums for line in grouped(rows, ("kind",))}
    assert {kind: sums["cost_nano"] for kind, sums in by_kind.items()} == {
        "gpu-hours": 999_000_000, "gpu-hours-idle": 2_001_000_000 + BILL, "invoke": 0,
    }  # fmt: skip
    assert total(rows)["input_tokens"] == 333
    seen = await SqlUsage(database, ZONE).roll_up(START, START + timedelta(hours=2), None)
    assert sum(row.cost_nano for row in seen) == 2 * BILL
    focus = focus_rows(rows, "EUR", ZONE)
    assert sum(int(row["BilledCost"].scaleb(9)) for row in focus) == 2 * BILL
    assert all(row["ServiceName"] for row in focus)


async def test_done_again_it_writes_nothing(ledger: SqlLedger, hours: SqlGpuHours, database: Database) -> None:
    """Nor where several processes do it at once, over many hours: each hour has its bill, once."""
    for hour in range(30):
        await use(ledger, START + timedelta(hours=hour, minutes=5), "acme", 7 * hour)
    now = START + timedelta(hours=30, minutes=30)
    done = await asyncio.gather(*(SqlGpuHours(database, ZONE).allocate(TARIFFS, now) for _ in range(3)))
    lines = [line for each in done for line in each]
    assert len({line.hour for line in lines}) == 30
    assert sum(line.cost_nano for line in lines) == 30 * BILL
    assert await hours.allocate(TARIFFS, now) == []
    off = await hours.off()
    assert (off.bills, off.tokens) == (0, 0)


async def test_an_hour_with_a_call_under_way_waits(ledger: SqlLedger, hours: SqlGpuHours) -> None:
    """Until the call is recorded; then its tokens count."""
    made, told = made_at(START + timedelta(minutes=30), "acme", 1000)
    await ledger.intend(made)
    now = START + timedelta(hours=1, minutes=30)
    assert await hours.allocate(TARIFFS, now) == []
    await ledger.record(told)
    assert [(line.payer_team, line.cost_nano) for line in await hours.allocate(TARIFFS, now)] == [
        ("acme", BILL),
        ("platform", 0),
    ]


async def test_a_closed_month_gets_no_hour(database: Database, hours: SqlGpuHours) -> None:
    """Its export was handed over; hours before the month can be closed are known to be open."""
    november = datetime(2026, 11, 2, tzinfo=UTC)
    # In the zone of the books October ends at 18:30 UTC; the hour in which that is begins in October.
    assert len(await hours.open_hours(TARIFFS, date(2026, 10, 1))) == 11 * 24 + 19
    closed = await SqlBooks(database, ZONE).close_month(date(2026, 10, 1), november, lambda _: to_csv([], ["a"]))
    lines = await hours.allocate(TARIFFS, november)
    assert min(line.hour for line in lines) == datetime(2026, 10, 31, 19, tzinfo=UTC)
    assert {line.day.month for line in lines} == {11}
    assert closed.content == b"a\n"


async def test_budgets_remember_what_an_hour_may_cost(ledger: SqlLedger, database: Database) -> None:
    """The provisional cost is in the rows, of calls that are recorded, under way or lost: a rebuilt counter has it."""
    await use(ledger, START, "acme", 100)
    made, _ = made_at(START, "acme", 200)
    await ledger.intend(made)
    spending = SqlSpending(database)
    snapshot = await spending.snapshot([START])
    assert [each.usage.provisional_nano for each in snapshot.since[START]] == [300_000_000]
    assert [(each.estimate.provisional_nano, each.gpu_hour_nano) for each in snapshot.intents] == [(600_000_000, BILL)]
    sweeper = Sweeper(database, lambda: "", lambda: START)
    await sweeper.unsettle(await sweeper.orphans(START + timedelta(hours=1)))
    snapshot = await spending.snapshot([START])
    assert [each.usage.provisional_nano for each in snapshot.since[START]] == [900_000_000]
    assert await sweeper.outcomes([made.id]) == {made.id: made.estimate}


async def test_a_line_too_many_is_found(ledger: SqlLedger, database: Database, hours: SqlGpuHours) -> None:
    """`gateway ledger verify` sees hours that are not their bill, and hours that are not their calls."""
    await use(ledger, START, "acme", 100)
    line, _ = await hours.allocate(TARIFFS, START + timedelta(hours=1, minutes=30))
    async with database.begin() as connection:
        await connection.execute(insert(tables.gpu_share), structs.asdict(line) | {"payer_team": "bolt"})
    off = await hours.off()
    assert (off.bills, off.tokens) == (1, 1)


async def test_calls_paid_by_the_hour_have_no_price_to_correct(ledger: SqlLedger, database: Database) -> None:
    """They would be billed twice."""
    await use(ledger, START + timedelta(hours=1), "acme", 100)
    await SqlBooks(database, ZONE).close_days(START + timedelta(days=5))
    correction = Correction(
        model="own-llm", start=START.date(), end=START.date() + timedelta(days=1), input_per_million="1",
        output_per_million="1", reason="r",
    )  # fmt: skip
    with pytest.raises(Conflict, match="GPU-hour"):
        await SqlCorrections(database, ZONE, str).find(correction, START + timedelta(days=5))


async def test_a_later_bill_is_charged_as_the_difference(
    ledger: SqlLedger, database: Database, hours: SqlGpuHours
) -> None:
    """Split as the hours were, idle part included, to the nano-unit; in the open month, once; October stays."""
    for hour in range(5):
        await use(ledger, START + timedelta(hours=hour), "acme", 100 + hour)
        await use(ledger, START + timedelta(hours=hour), "bolt", 233)
    day, october, november = START.date(), date(2026, 10, 1), datetime(2026, 11, 3, 12, tzinfo=UTC)
    await hours.allocate(TARIFFS, START + timedelta(days=1))
    books, corrections = SqlBooks(database, ZONE), SqlCorrections(database, ZONE, new_id)
    await books.close_days(november)
    before = await books.days(october, date(2026, 11, 1))
    # The day in the zone of the books has 19 of the hours from midnight UTC on.
    invoice = HourCorrection(
        model="own-llm", start=day, end=day + timedelta(days=1), per_hour="3.100000001", reason="the invoice"
    )
    written = await corrections.write(invoice, november)
    assert sum(each.cost_nano for each in written) == 19 * (3_100_000_001 - BILL)
    assert {(each.payer_team, each.task) for each in written} == {
        ("acme", "message-moderation"),
        ("bolt", "message-moderation"),
        ("platform", ""),
    }
    assert await corrections.write(invoice, november) == []
    assert await corrections.differing() == []
    assert await books.days(october, date(2026, 11, 1)) == before
    charged = await books.days(date(2026, 11, 1), date(2026, 12, 1))
    assert total(charged)["cost_nano"] == 19 * 100_000_001
    rows = focus_rows(charged, "EUR", ZONE)
    assert {(row["ChargeClass"], row["ChargeCategory"]) for row in rows} == {("Correction", "Adjustment")}
    back = await corrections.write(structs.replace(invoice, per_hour="3.00"), november)
    assert sum(each.cost_nano for each in back) == -19 * 100_000_001


async def test_an_adjustment_of_a_team_without_calls_is_found(
    ledger: SqlLedger, database: Database, hours: SqlGpuHours
) -> None:
    """`gateway ledger verify` asks those too who were never billed on the corrected day."""
    await use(ledger, START, "acme", 100)
    await hours.allocate(TARIFFS, START + timedelta(days=1))
    day, november = START.date(), datetime(2026, 11, 3, 12, tzinfo=UTC)
    invoice = HourCorrection(model="own-llm", start=day, end=day + timedelta(days=1), per_hour="3.10", reason="r")
    corrections = SqlCorrections(database, ZONE, new_id)
    written, *_ = await corrections.write(invoice, november)
    async with database.begin() as connection:
        await connection.execute(
            insert(tables.price_adjustment), structs.asdict(written) | {"id": new_id(), "payer_team": "bolt"}
        )
    assert await corrections.differing() == [(day, "own-llm")]
