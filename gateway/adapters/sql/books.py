"""The books: days that are closed into sums, months that are closed into an export.

A day is closed when it is over, and no call that began in it is still under way: from then on its rows never change,
so its sums need not be made again.
"""

import hashlib
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import Struct, structs
from sqlalchemy import Select, case, func, insert, literal, or_, select, union_all
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.exports import billed_nano
from gateway.adapters.sql.charges import charged
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.retention import Removed, removed
from gateway.adapters.sql.settled import settled_until
from gateway.adapters.sql.sums import NO_SUMS, Sums, sums_of, total
from gateway.adapters.sql.tables import attempt, inference, intent, model_call, usage_close, usage_day
from gateway.core.errors import Conflict
from gateway.core.reports import UsageDay, day_start, month_after

_WHO = ("payer_team", "caller_team", "owner_team", "task", "kind")
_COLUMNS = tuple(name for name in UsageDay.__struct_fields__ if name != "corrects")


class ClosedMonth(Struct, frozen=True):
    """An export as it was stored."""

    month: date
    sha256: str
    content: bytes
    closed_at: datetime


class Totals(Struct, frozen=True, kw_only=True):
    """The whole ledger, summed three ways; how many rows differ from the sum of their parts; what is under way; what
    reports say of it. All as of one moment.

    `removed` are the calls that retention removed, with what was `removed_unsettled` of them; they are in no other sum.
    """

    calls: Sums
    attempts: Sums
    inferences: Sums
    unsettled: Sums
    attempts_off: int
    inferences_off: int
    days_off: Sequence[date]
    months_off: Sequence[date]
    intents: Sums
    removed: Sums = NO_SUMS
    removed_unsettled: Sums = NO_SUMS
    reported: Sequence[UsageDay] = ()


class SqlBooks:
    """Sums and closed months. Any number of processes may close at once."""

    def __init__(self, database: Database, zone: ZoneInfo) -> None:
        self._database, self._zone = database, zone

    async def close_days(self, now: datetime) -> Sequence[date]:
        """Close every day that can be: which ones. Doing it again changes nothing. Raises Unavailable."""
        closed = []
        async with self._database.begin() as connection:
            day, last = await self._next(connection), await self._last(connection, now)
        while day is not None and day <= last:
            try:
                async with self._database.begin() as connection:
                    if rows := await self._live(connection, day):
                        await connection.execute(insert(usage_day), [_stored(row, now) for row in rows])
                closed.append(day)
            except IntegrityError:
                # Another process was faster; it counted the same rows.
                pass
            day += timedelta(days=1)
        return closed

    async def days(self, start: date, end: date) -> list[UsageDay]:
        """The sums of [start, end), from closed days where there are any, else from the rows. Raises Unavailable."""
        async with self._database.snapshot() as connection:
            return await self._days(connection, start, end)

    async def close_month(
        self, month: date, now: datetime, export: Callable[[Sequence[UsageDay]], bytes]
    ) -> ClosedMonth:
        """Store a month's export, or return the one that is stored: identical for ever.

        Raises Conflict while the month is not over or calls of it are under way, Unavailable.
        """
        if (stored := await self.closed_month(month)) is not None:
            return stored
        await self.close_days(now)
        end = month_after(month)
        async with self._database.begin() as connection:
            if await self._last(connection, now) < end - timedelta(days=1):
                raise Conflict(f"{month:%Y-%m} is not over, or calls of it are still under way.")
        content = export(await self.days(month, end))
        closed = ClosedMonth(month, hashlib.sha256(content).hexdigest(), content, now)
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(usage_close), structs.asdict(closed))
        except IntegrityError:
            # Another process was faster; what it stored is what counts.
            return await self.closed_month(month) or closed
        return closed

    async def closed_month(self, month: date) -> ClosedMonth | None:
        """The stored export of a month. Raises Unavailable."""
        async with self._database.begin() as connection:
            row = (await connection.execute(select(usage_close).where(usage_close.c.month == month))).mappings().first()
        return ClosedMonth(**row) if row is not None else None

    async def totals(self) -> Totals:
        """Everything that must agree. Reads the whole ledger. Raises Unavailable."""
        async with self._database.snapshot() as connection:
            gone = await removed(connection)
            calls = _of(model_call, "inference_id", gone)
            return Totals(
                calls=await _sums(connection, calls),
                attempts=await _sums(connection, _of(attempt, "inference_id", gone)),
                inferences=await _sums(connection, _of(inference, "id", gone)),
                unsettled=await _sums(connection, calls.where(model_call.c.settled.is_(False))),
                attempts_off=await _count(connection, _differing(attempt, model_call, "attempt_id", gone)),
                inferences_off=await _count(connection, _differing(inference, attempt, "inference_id", gone)),
                days_off=await self._days_off(connection, gone),
                months_off=await self._months_off(connection),
                intents=await _sums(connection, sums_of(intent)),
                removed=gone.calls if gone is not None else NO_SUMS,
                removed_unsettled=gone.unsettled if gone is not None else NO_SUMS,
                reported=await self._days(connection, date.min, date.max),
            )

    async def _months_off(self, connection: AsyncConnection) -> list[date]:
        """Closed months whose export is not what its hash says, or not the cost of its closed days."""
        off = []
        for row in (await connection.execute(select(usage_close).order_by(usage_close.c.month))).mappings():
            month, content = row["month"], row["content"]
            days = await self._stored(connection, month, month_after(month))
            cost = sum(day.cost_nano for day in days + await charged(connection, month, month_after(month)))
            if hashlib.sha256(content).hexdigest() != row["sha256"] or billed_nano(content) != cost:
                off.append(month)
        return off

    async def _days(self, connection: AsyncConnection, start: date, end: date) -> list[UsageDay]:
        found = await self._stored(connection, start, end)
        day = max(start, await self._next(connection) or end)
        last = await self._newest(connection)
        while day < end and last is not None and day <= last:
            found += await self._live(connection, day)
            day += timedelta(days=1)
        return found + await charged(connection, start, end)

    async def _days_off(self, connection: AsyncConnection, gone: Removed | None) -> list[date]:
        """Closed days whose sums are not those of their rows, as far back as all rows must be there."""
        stored: dict[date, set[UsageDay]] = {}
        for row in await self._stored(connection, date.min, date.max):
            stored.setdefault(row.day, set()).add(row)
        oldest = min([*stored, await self._oldest(connection) or date.max])
        day, end = max(oldest, gone.first_day(self._zone)) if gone is not None else oldest, await self._next(connection)
        off = []
        while end is not None and day < end:
            if set(await self._live(connection, day)) != stored.get(day, set()):
                off.append(day)
            day += timedelta(days=1)
        return off

    async def _stored(self, connection: AsyncConnection, start: date, end: date) -> list[UsageDay]:
        """The closed days of [start, end)."""
        query = select(usage_day).where(usage_day.c.day >= start, usage_day.c.day < end)
        return [_usage_day(row) for row in (await connection.execute(query)).mappings()]

    async def _live(self, connection: AsyncConnection, day: date) -> list[UsageDay]:
        """A day's sums, from the rows."""
        start, end = day_start(day, self._zone), day_start(day + timedelta(days=1), self._zone)
        rows: list[UsageDay] = []
        for query, at in ((_counted(), inference.c.received_at), (_spent(), model_call.c.started_at)):
            found = (await connection.execute(query.where(at >= start, at < end))).mappings()
            rows += [UsageDay(day=day, **row) for row in found]
        return rows

    async def _next(self, connection: AsyncConnection) -> date | None:
        """The first day that is not closed; None where there is nothing to close."""
        last = (await connection.execute(select(func.max(usage_day.c.day)))).scalar_one()
        return last + timedelta(days=1) if last is not None else await self._oldest(connection)

    async def _last(self, connection: AsyncConnection, now: datetime) -> date:
        """The last day that can be closed."""
        return (await settled_until(connection, now)).astimezone(self._zone).date() - timedelta(days=1)

    async def _oldest(self, connection: AsyncConnection) -> date | None:
        return await self._edge(connection, func.min)

    async def _newest(self, connection: AsyncConnection) -> date | None:
        return await self._edge(connection, func.max)

    async def _edge(self, connection: AsyncConnection, edge: Any) -> date | None:
        found = [
            (await connection.execute(select(edge(column)))).scalar_one()
            for column in (inference.c.received_at, model_call.c.started_at)
        ]
        days = [at.astimezone(self._zone).date() for at in found if at is not None]
        return (min if edge is func.min else max)(days) if days else None


def _counted() -> Select[Any]:
    """Inferences; those that the cache answered."""
    who = [inference.c[name] for name in _WHO]
    cached = total(case((inference.c.cache.in_(("hit", "shared")), 1), else_=0)).label("cached")
    query: Select[Any] = select(*who, func.count().label("inferences"), cached)
    return query.group_by(*who)


def _spent() -> Select[Any]:
    """Model calls by stage and model."""
    calls = model_call.c
    who = [*(calls[name] for name in _WHO), calls.stage, calls.model]
    sums = [total(calls[name]).label(name) for name in ("input_tokens", "output_tokens", "cost_nano")]
    unsettled = total(case((calls.settled, 0), else_=calls.cost_nano)).label("unsettled_nano")
    query: Select[Any] = select(*who, func.count().label("model_calls"), *sums, unsettled)
    return query.group_by(*who)


def _of(table: Any, inference_id: str, gone: Removed | None) -> Select[Any]:
    """The sums of a table, without rows of inferences whose other rows retention may have removed."""
    return sums_of(table) if gone is None else sums_of(table).where(table.c[inference_id] >= gone.kept_from)


def _differing(whole: Any, part: Any, reference: str, gone: Removed | None) -> Select[Any]:
    """Ids of `whole` whose cost or tokens are not the sum of their parts, and of parts without a whole.

    Both are read once, and grouped: a join of all with all would take SQLite hours for a million rows.
    """
    names = ("input_tokens", "output_tokens", "cost_nano")
    wholes = select(whole.c.id.label("id"), literal(1).label("wholes"), *(whole.c[name] for name in names))
    parts = select(part.c[reference], literal(0), *(-part.c[name] for name in names))
    if gone is not None:
        of = whole.c.inference_id if "inference_id" in whole.c else whole.c.id
        wholes, parts = wholes.where(of >= gone.kept_from), parts.where(part.c.inference_id >= gone.kept_from)
    both = union_all(wholes, parts).subquery()
    off = (func.sum(both.c[name]) != 0 for name in names)
    return select(both.c.id).group_by(both.c.id).having(or_(func.max(both.c.wholes) == 0, *off))


async def _sums(connection: AsyncConnection, query: Select[Any]) -> Sums:
    return Sums(*(await connection.execute(query)).one())


async def _count(connection: AsyncConnection, query: Select[Any]) -> int:
    count: int = (await connection.execute(select(func.count()).select_from(query.subquery()))).scalar_one()
    return count


def _usage_day(row: Any) -> UsageDay:
    return UsageDay(**{name: row[name] for name in _COLUMNS})


def _stored(row: UsageDay, closed_at: datetime) -> dict[str, Any]:
    return {**{name: getattr(row, name) for name in _COLUMNS}, "closed_at": closed_at}
