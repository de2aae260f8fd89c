"""Corrections of prices over SQL: computed from the calls or hours themselves, appended beside them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct, structs
from sqlalchemy import Select, case, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.settled import settled_until
from gateway.adapters.sql.sums import total
from gateway.adapters.sql.tables import gpu_share, model_call, price_adjustment, usage_day
from gateway.core.audit import TERMINAL
from gateway.core.corrections import Adjustment, Correction, HourCorrection
from gateway.core.errors import Conflict
from gateway.core.gpu_hours import by_largest_remainder
from gateway.core.prices import Tariff, from_nano, to_nano
from gateway.core.reports import day_start
from gateway.core.task import Price

_WHO = ("payer_team", "caller_team", "owner_team", "task")
_PRICES = ("input_per_million_nano", "output_per_million_nano", "per_hour_nano")

AnyCorrection = Correction | HourCorrection
Who = tuple[str, ...]


class _Bill(Struct):
    """The calls or hours of one payer, caller, owner and task on one day: what was billed, what should have been."""

    count: int = 0
    billed_nano: int = 0
    due_nano: int = 0


class _Adjusted(Struct, frozen=True):
    """What earlier corrections added, and how many there were."""

    cost_nano: int = 0
    position: int = 0


class SqlCorrections:
    """Finds and writes adjustments. Made again, a correction finds nothing: it counts what was adjusted before."""

    def __init__(self, database: Database, zone: ZoneInfo, new_id: Callable[[], str]) -> None:
        self._database, self._zone, self._new_id = database, zone, new_id

    async def find(self, correction: AnyCorrection, now: datetime) -> Sequence[Adjustment]:
        """What the correction would write at `now`.

        Raises InvalidInput for a price or interval that is none; Conflict where a day is not over yet, or where rows
        that it needs were removed by retention; Unavailable.
        """
        async with self._database.begin() as connection:
            return await self._find(connection, correction, now)

    async def write(self, correction: AnyCorrection, now: datetime) -> Sequence[Adjustment]:
        """Write it, with its act in the audit log. Raises as `find` does, and Conflict where another one is faster."""
        try:
            async with self._database.begin() as connection:
                found = await self._find(connection, correction, now)
                if found:
                    await connection.execute(insert(price_adjustment), [structs.asdict(each) for each in found])
                    told = _told(correction, found)
                    await note(connection, TERMINAL, "price_corrected", correction.model, now, **told)
                return found
        except IntegrityError as error:
            raise Conflict("Another correction of the same days was written meanwhile; look at it first.") from error

    async def differing(self) -> Sequence[tuple[date, str]]:
        """(day, model) of corrected days where billed + adjusted is not what the last correction's price gives.

        Only days whose calls are all still there are looked at. Raises Unavailable.
        """
        rows, off = price_adjustment.c, []
        prices = select(rows.corrects, rows.model, *(rows[name] for name in _PRICES)).order_by(rows.id)
        async with self._database.begin() as connection:
            # The newest row of a day and model comes last, and stays: one of calls, one of hours.
            last = {
                (day, model, price[-1] is not None): price for day, model, *price in await connection.execute(prices)
            }
            for (day, model, hourly), (per_input, per_output, per_hour) in last.items():
                price = per_hour if per_hour is not None else _tariff(per_input, per_output)
                bills = await self._bills(connection, model, day, price)
                if bills is None:
                    continue
                adjusted = await _adjusted(connection, model, day, hourly=hourly)
                due = {who: bill.due_nano - bill.billed_nano for who, bill in bills.items()}
                if any(due.get(who, 0) != _so_far(adjusted, who) for who in {*due, *adjusted}):
                    off.append((day, model))
        return off

    async def _find(self, connection: AsyncConnection, correction: AnyCorrection, now: datetime) -> list[Adjustment]:
        price = correction.tariff() if isinstance(correction, Correction) else correction.bill_nano()
        settled = await settled_until(connection, now)
        if isinstance(correction, HourCorrection):
            # Where days do not begin with an hour of UTC, their last hour is shared out when it is over.
            settled = settled.replace(minute=0, second=0, microsecond=0)
        complete = settled.astimezone(self._zone).date()
        if correction.end > complete:
            raise Conflict(f"Days from {complete} on are not over, or calls of them are still under way.")
        found: list[Adjustment] = []
        day = correction.start
        while day < correction.end:
            found += await self._of_day(connection, correction, day, price, now)
            day += timedelta(days=1)
        return found

    async def _of_day(
        self, connection: AsyncConnection, correction: AnyCorrection, day: date, price: Tariff | int, now: datetime
    ) -> list[Adjustment]:
        bills = await self._bills(connection, correction.model, day, price)
        if bills is None:
            raise Conflict(f"The calls of {day} are no longer all in the ledger: retention has removed them.")
        adjusted = await _adjusted(connection, correction.model, day, hourly=isinstance(price, int))
        return [
            Adjustment(
                id=self._new_id(),
                day=now.astimezone(self._zone).date(),
                corrects=day,
                **_named(who),
                model=correction.model,
                cost_nano=difference,
                reason=correction.reason,
                created_at=now,
                position=(adjusted[who].position if who in adjusted else 0) + 1,
                **_prices(correction),
            )
            for who, bill in sorted(bills.items())
            if (difference := bill.due_nano - bill.billed_nano - _so_far(adjusted, who)) != 0
        ]

    async def _bills(
        self, connection: AsyncConnection, model: str, day: date, price: Tariff | int
    ) -> dict[Who, _Bill] | None:
        """Of a day's hours where the price is a bill of one, else of its calls; None where calls are gone."""
        if isinstance(price, int):
            return await _of_hours(connection, model, day, price)
        bills = await self._of_calls(connection, model, day, price)
        return bills if await _complete(connection, model, day, bills) else None

    async def _of_calls(self, connection: AsyncConnection, model: str, day: date, tariff: Tariff) -> dict[Who, _Bill]:
        """Row by row, as rounding is: rows of equal tokens are read as one, and counted."""
        start, end = day_start(day, self._zone), day_start(day + timedelta(days=1), self._zone)
        query = _alike().where(model_call.c.model == model)
        query = query.where(model_call.c.started_at >= start, model_call.c.started_at < end)
        bills: dict[Who, _Bill] = {}
        for *who, input_tokens, output_tokens, calls, by_the_hour, billed_nano in await connection.execute(query):
            if by_the_hour:
                raise Conflict(f"On {day} `{model}` was paid by the GPU-hour: correct the price of the hour.")
            bill = bills.setdefault(tuple(who), _Bill())
            bill.count += calls
            bill.billed_nano += billed_nano
            bill.due_nano += calls * tariff.cost_nano(input_tokens, output_tokens, start)
        return bills


async def _of_hours(connection: AsyncConnection, model: str, day: date, bill_nano: int) -> dict[Who, _Bill]:
    """Hour by hour, the bill split as it was: by the tokens of the lines, the idle one included."""
    lines = gpu_share.c
    query = select(lines.hour, *(lines[name] for name in _WHO), lines.tokens, lines.cost_nano)
    found = await connection.execute(query.where(lines.model == model, lines.day == day).order_by(lines.hour))
    bills: dict[Who, _Bill] = {}
    for _, hour in groupby(found, lambda line: line.hour):
        parts = {tuple(who): (tokens, cost_nano) for _, *who, tokens, cost_nano in hour}
        due = by_largest_remainder(bill_nano, {who: tokens for who, (tokens, _) in parts.items()})
        for who, (_, cost_nano) in parts.items():
            bill = bills.setdefault(who, _Bill())
            bill.count += 1
            bill.billed_nano += cost_nano
            bill.due_nano += due[who]
    return bills


def _alike() -> Select[Any]:
    calls = model_call.c
    alike = [*(calls[name] for name in _WHO), calls.input_tokens, calls.output_tokens]
    query: Select[Any] = select(*alike, func.count(), func.count(calls.gpu_hour_nano), total(calls.cost_nano))
    return query.group_by(*alike)


async def _complete(connection: AsyncConnection, model: str, day: date, bills: Mapping[Who, _Bill]) -> bool:
    """Whether the rows are all there that the closed day was summed from."""
    query = select(func.coalesce(total(usage_day.c.model_calls), 0))
    counted = await connection.execute(query.where(usage_day.c.day == day, usage_day.c.model == model))
    return bool(counted.scalar_one() == sum(bill.count for bill in bills.values()))


async def _adjusted(connection: AsyncConnection, model: str, day: date, *, hourly: bool) -> dict[Who, _Adjusted]:
    """What rows of this kind of price came to; positions are counted over both."""
    rows = price_adjustment.c
    who = [rows[name] for name in _WHO]
    alike = rows.per_hour_nano.is_not(None) if hourly else rows.per_hour_nano.is_(None)
    query = select(*who, total(case((alike, rows.cost_nano), else_=0)), func.max(rows.position)).group_by(*who)
    found = await connection.execute(query.where(rows.model == model, rows.corrects == day))
    return {tuple(who): _Adjusted(cost_nano, position) for *who, cost_nano, position in found}


def _so_far(adjusted: Mapping[Who, _Adjusted], who: Who) -> int:
    return adjusted[who].cost_nano if who in adjusted else 0


def _named(who: Who) -> dict[str, Any]:
    return dict(zip(_WHO, who, strict=True))


def _prices(correction: AnyCorrection) -> dict[str, Any]:
    """The columns of `_PRICES` that it has."""
    if isinstance(correction, HourCorrection):
        return {"per_hour_nano": correction.bill_nano()}
    amounts = (correction.input_per_million, correction.output_per_million)
    return dict(zip(_PRICES, map(to_nano, amounts), strict=False))


def _tariff(per_input: int, per_output: int) -> Tariff:
    return Tariff(
        (Price(start=date.min, input_per_million=from_nano(per_input), output_per_million=from_nano(per_output)),)
    )


def _told(correction: AnyCorrection, found: Sequence[Adjustment]) -> dict[str, Any]:
    said = structs.asdict(correction)
    said.update(start=correction.start.isoformat(), end=correction.end.isoformat())
    return {**said, "rows": len(found), "cost": from_nano(sum(each.cost_nano for each in found))}
