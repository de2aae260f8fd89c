"""The books: days and months that close, sums that agree, exports that never change."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError
from stories import TRUTH, inference, intent, invocation, new_id

from gateway.adapters.exports import to_csv
from gateway.adapters.sql import tables
from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.claims import SqlClaims
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.core.errors import Conflict, Unavailable
from gateway.core.inference import Invocation
from gateway.core.reports import Part, UsageDay, focus_rows, grouped, total

ZONE = ZoneInfo("Europe/Berlin")
# The clocks of the zone go back on 25 October 2026: that day has 25 hours, and ends at 23:00 UTC.
NOON = datetime(2026, 10, 25, 12, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 3, tzinfo=UTC)


@pytest.fixture
def books(database: Database) -> SqlBooks:
    """The books of the database under test, in a zone whose days are not those of UTC."""
    return SqlBooks(database, ZONE)


async def spend(ledger: SqlLedger, *moments: datetime, **changed: Any) -> None:
    """An inference with one call at each of these moments."""
    for at in moments:
        asked = invocation(received_at=at, **changed)
        made = intent(asked, created_at=at)
        await ledger.intend(made)
        await ledger.record(inference(asked, made))


def export(rows: Iterable[UsageDay]) -> bytes:
    """As `gateway usage close` does."""
    focus = focus_rows(rows, "EUR", ZONE)
    return to_csv(focus, list(focus[0]) if focus else [])


async def test_a_day_is_that_of_the_billing_timezone(ledger: SqlLedger, books: SqlBooks) -> None:
    """A call at the last instant of a long day belongs to it, one at the next instant to the next."""
    end = datetime(2026, 10, 25, 23, tzinfo=UTC)
    await spend(ledger, end - timedelta(microseconds=1), end)
    days = [row.day for row in await books.days(date(2026, 10, 1), date(2026, 11, 1)) if row.model]
    assert days == [date(2026, 10, 25), date(2026, 10, 26)]


async def test_closed_sums_are_those_of_the_rows(ledger: SqlLedger, database: Database, books: SqlBooks) -> None:
    """Closing changes no report, can be done by many at once, and is not done twice."""
    await spend(ledger, NOON, NOON + timedelta(hours=1), NOON + timedelta(days=2))
    await ledger.record(inference(invocation(received_at=NOON), cache="hit"))
    span = (date(2026, 10, 1), date(2026, 11, 1))
    before = await books.days(*span)
    closed = await asyncio.gather(*(SqlBooks(database, ZONE).close_days(NOVEMBER) for _ in range(3)))
    assert sum(date(2026, 10, 25) in days for days in closed) == 1
    after = await books.days(*span)
    assert set(after) == set(before)
    assert total(after)["cost_nano"] == 3 * TRUTH.cost_nano
    assert (total(after)["inferences"], total(after)["cached"], total(after)["model_calls"]) == (4, 1, 3)
    assert (await books.totals()).days_off == []


async def test_a_day_with_a_call_under_way_stays_open(ledger: SqlLedger, books: SqlBooks) -> None:
    """Until the intent is settled or swept, neither its day nor its month can be closed."""
    await spend(ledger, NOON)
    asked = invocation(received_at=NOON + timedelta(minutes=1))
    made = intent(asked, created_at=asked.received_at)
    await ledger.intend(made)
    assert await books.close_days(NOVEMBER) == []
    with pytest.raises(Conflict):
        await books.close_month(date(2026, 10, 1), NOVEMBER, export)
    await ledger.record(inference(asked, made))
    assert date(2026, 10, 25) in await books.close_days(NOVEMBER)


async def test_a_closed_month_is_the_same_for_ever(ledger: SqlLedger, database: Database, books: SqlBooks) -> None:
    """The export does not change when rows come later or retention takes them, and cannot be changed in the table."""
    await spend(ledger, NOON)
    first = await books.close_month(date(2026, 10, 1), NOVEMBER, export)
    await spend(ledger, NOON)
    assert await books.close_month(date(2026, 10, 1), NOVEMBER + timedelta(days=400), export) == first
    assert b"0.000048100" in first.content
    with pytest.raises((IntegrityError, Unavailable)):
        async with database.begin() as connection:
            await connection.execute(delete(tables.usage_close))
    assert await books.closed_month(date(2026, 10, 1)) == first


async def test_a_month_that_is_not_over_cannot_be_closed(ledger: SqlLedger, books: SqlBooks) -> None:
    """In the billing timezone, and not before its last inferences are recorded."""
    await spend(ledger, NOON)
    for early in (NOON, datetime(2026, 10, 31, 23, 5, tzinfo=UTC)):
        with pytest.raises(Conflict):
            await books.close_month(date(2026, 10, 1), early, export)


@pytest.mark.parametrize("broken", ["attempt", "inference", "usage_day"])
async def test_a_row_that_differs_is_found(ledger: SqlLedger, database: Database, books: SqlBooks, broken: str) -> None:
    """A call too many, an attempt without its inference, a day that was summed wrong: each is counted."""
    await spend(ledger, NOON, NOON + timedelta(hours=1))
    await books.close_days(NOVEMBER)
    totals = await books.totals()
    assert (totals.attempts_off, totals.inferences_off, totals.days_off) == (0, 0, [])
    assert totals.calls.cost_nano == totals.attempts.cost_nano == totals.inferences.cost_nano == 2 * TRUTH.cost_nano
    async with database.begin() as connection:
        if broken == "usage_day":
            await connection.execute(delete(tables.usage_day).where(tables.usage_day.c.model != ""))
        else:
            table = tables.model_call if broken == "attempt" else tables.attempt
            row = dict((await connection.execute(select(table).where(table.c.cost_nano > 0))).mappings().first() or {})
            await connection.execute(insert(table), {**row, "id": new_id()})
    totals = await books.totals()
    off = {"attempt": totals.attempts_off, "inference": totals.inferences_off, "usage_day": len(totals.days_off)}
    assert off[broken] == 1


async def test_expired_keys_are_forgotten(ledger: SqlLedger, database: Database) -> None:
    """A key is known for 24 hours; then its row, which may hold an output, is removed."""
    asked: Invocation = invocation(idempotency_key="k", received_at=NOON)
    await ledger.record(inference(asked))
    claims = SqlClaims(database)
    assert (await claims.claim(invocation(idempotency_key="k", received_at=NOON), 60)).run_id == asked.id
    assert await claims.forget(NOON + timedelta(hours=23)) == 0
    assert await claims.forget(NOON + timedelta(hours=24)) == 1


ROWS = st.lists(
    st.builds(
        UsageDay,
        day=st.dates(date(2026, 1, 1), date(2026, 3, 1)),
        payer_team=st.sampled_from("ab"),
        caller_team=st.sampled_from("ab"),
        owner_team=st.just("o"),
        task=st.sampled_from("xy"),
        kind=st.sampled_from(["invoke", "audit"]),
        model=st.sampled_from(["", "m"]),
        input_tokens=st.integers(0, 10**9),
        cost_nano=st.integers(0, 10**15),
    ),
    max_size=30,
)


@given(ROWS, st.lists(st.sampled_from(["team", "task", "model", "day", "stage", "kind"]), unique=True))
def test_however_grouped_the_lines_sum_to_the_rows(rows: list[UsageDay], by: list[Part]) -> None:
    """No grouping loses or invents a nano-unit; nor does the FOCUS export."""
    cost = sum(row.cost_nano for row in rows)
    assert sum(line.sums["cost_nano"] for line in grouped(rows, by)) == cost
    assert sum(int(row["BilledCost"].scaleb(9)) for row in focus_rows(rows, "EUR", ZONE)) == cost


def test_focus_rows_have_the_mandatory_columns() -> None:
    """Names of FOCUS 1.2 (https://focus.finops.org/focus-specification/v1-2/), everything else begins with x_."""
    rows = [
        UsageDay(
            day=date(2026, 10, 25), payer_team="p", caller_team="c", owner_team="o", task="t", kind=kind, model="m",
            corrects=corrects,
        )
        for kind, corrects in (("adjustment", "2026-10-24"), ("adjustment", "2026-09-30"), ("invoke", ""))
    ]  # fmt: skip
    same_month, correction, usage = sorted(focus_rows(rows, "EUR", ZONE), key=lambda row: row["x_Kind"])
    if same_month["ChargeClass"]:
        same_month, correction = correction, same_month
    mandatory = {
        "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
        "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd",
        "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity",
        "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
    }  # fmt: skip
    known = mandatory | {"ChargeFrequency", "ConsumedQuantity", "ConsumedUnit", "ResourceId", "SkuId", "SubAccountId"}
    assert mandatory <= set(usage)
    assert {column for column in usage if not column.startswith("x_")} == known
    assert (usage["ChargePeriodStart"], usage["ChargePeriodEnd"]) == ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z")
    assert (correction["ChargeCategory"], correction["ChargeClass"]) == ("Adjustment", "Correction")
    assert (correction["ChargePeriodStart"], correction["BillingPeriodStart"]) == (
        "2026-09-29T22:00:00Z",
        "2026-09-30T22:00:00Z",
    )
    assert (same_month["ChargeCategory"], same_month["ChargeClass"]) == ("Adjustment", None)
    assert (usage["ChargeCategory"], usage["ChargeClass"]) == ("Usage", None)
