"""Corrections of prices over SQL: computed from the calls themselves, appended beside them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct, structs
from sqlalchemy import Select, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.settled import settled_until
from gateway.adapters.sql.tables import model_call, price_adjustment, usage_day
from gateway.adapters.sql.usage import total
from gateway.core.audit import TERMINAL
from gateway.core.corrections import Adjustment, Correction
from gateway.core.errors import Conflict
from gateway.core.prices import Tariff, from_nano, to_nano
from gateway.core.reports import day_start
from gateway.core.task import Price

_WHO = ("payer_team", "caller_team", "owner_team", "task")

Who = tuple[str, ...]


class _Bill(Struct):
    """The calls of one payer, caller, owner and task on one day: what they were billed, what they should have been."""

    calls: int = 0
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

    async def find(self, correction: Correction, now: datetime) -> Sequence[Adjustment]:
        """What the correction would write at `now`.

        Raises InvalidInput for a price or interval that is none; Conflict where a day is not over yet, or where rows
        that it needs were removed by retention; Unavailable.
        """
        async with self._database.begin() as connection:
            return await self._find(connection, correction, now)

    async def write(self, correction: Correction, now: datetime) -> Sequence[Adjustment]:
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
        prices = select(rows.corrects, rows.model, rows.input_per_million_nano, rows.output_per_million_nano)
        async with self._database.begin() as connection:
            # The newest row of a day and model comes last, and stays.
            last = {
                (day, model): (per_input, per_output)
                for day, model, per_input, per_output in await connection.execute(prices.order_by(rows.id))
            }
            for (day, model), price in last.items():
                bills = await self._bills(connection, model, day, _tariff(*price))
                if not await _complete(connection, model, day, bills):
                    continue
                adjusted = await _adjusted(connection, model, day)
                if any(bill.due_nano != bill.billed_nano + _so_far(adjusted, who) for who, bill in bills.items()):
                    off.append((day, model))
        return off

    async def _find(self, connection: AsyncConnection, correction: Correction, now: datetime) -> list[Adjustment]:
        tariff = correction.tariff()
        complete = (await settled_until(connection, now)).astimezone(self._zone).date()
        if correction.end > complete:
            raise Conflict(f"Days from {complete} on are not over, or calls of them are still under way.")
        found: list[Adjustment] = []
        day = correction.start
        while day < correction.end:
            found += await self._of_day(connection, correction, day, tariff, now)
            day += timedelta(days=1)
        return found

    async def _of_day(
        self, connection: AsyncConnection, correction: Correction, day: date, tariff: Tariff, now: datetime
    ) -> list[Adjustment]:
        bills = await self._bills(connection, correction.model, day, tariff)
        if not await _complete(connection, correction.model, day, bills):
            raise Conflict(f"The calls of {day} are no longer all in the ledger: retention has removed them.")
        adjusted = await _adjusted(connection, correction.model, day)
        return [
            Adjustment(
                id=self._new_id(),
                day=now.astimezone(self._zone).date(),
                corrects=day,
                **dict(zip(_WHO, who, strict=True)),
                model=correction.model,
                cost_nano=difference,
                reason=correction.reason,
                created_at=now,
                position=(adjusted[who].position if who in adjusted else 0) + 1,
                input_per_million_nano=to_nano(correction.input_per_million),
                output_per_million_nano=to_nano(correction.output_per_million),
            )
            for who, bill in sorted(bills.items())
            if (difference := bill.due_nano - bill.billed_nano - _so_far(adjusted, who)) != 0
        ]

    async def _bills(self, connection: AsyncConnection, model: str, day: date, tariff: Tariff) -> dict[Who, _Bill]:
        """Row by row, as rounding is: rows of equal tokens are read as one, and counted."""
        start, end = day_start(day, self._zone), day_start(day + timedelta(days=1), self._zone)
        query = _alike().where(model_call.c.model == model)
        query = query.where(model_call.c.started_at >= start, model_call.c.started_at < end)
        bills: dict[Who, _Bill] = {}
        for *who, input_tokens, output_tokens, calls, by_the_hour, billed_nano in await connection.execute(query):
            if by_the_hour:
                raise Conflict(f"On {day} `{model}` was paid by the GPU-hour; its calls have no price of their own.")
            bill = bills.setdefault(tuple(who), _Bill())
            bill.calls += calls
            bill.billed_nano += billed_nano
            bill.due_nano += calls * tariff.cost_nano(input_tokens, output_tokens, start)
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
    return bool(counted.scalar_one() == sum(bill.calls for bill in bills.values()))


async def _adjusted(connection: AsyncConnection, model: str, day: date) -> dict[Who, _Adjusted]:
    rows = price_adjustment.c
    who = [rows[name] for name in _WHO]
    query = select(*who, total(rows.cost_nano), func.max(rows.position)).group_by(*who)
    found = await connection.execute(query.where(rows.model == model, rows.corrects == day))
    return {tuple(who): _Adjusted(cost_nano, position) for *who, cost_nano, position in found}


def _so_far(adjusted: Mapping[Who, _Adjusted], who: Who) -> int:
    return adjusted[who].cost_nano if who in adjusted else 0


def _tariff(per_input: int, per_output: int) -> Tariff:
    return Tariff(
        (Price(start=date.min, input_per_million=from_nano(per_input), output_per_million=from_nano(per_output)),)
    )


def _told(correction: Correction, found: Sequence[Adjustment]) -> dict[str, Any]:
    said = structs.asdict(correction)
    said.update(start=correction.start.isoformat(), end=correction.end.isoformat())
    return {**said, "rows": len(found), "cost": from_nano(sum(each.cost_nano for each in found))}
