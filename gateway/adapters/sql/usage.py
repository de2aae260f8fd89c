"""The ledger, summed for any interval: closed days where it covers them, rows for the rest."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from msgspec import structs
from sqlalchemy import Column, Select, Table, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.retention import removed
from gateway.adapters.sql.sums import total
from gateway.adapters.sql.tables import gpu_share, inference, model_call, price_adjustment
from gateway.core.errors import InvalidInput
from gateway.core.records import UsageRow
from gateway.core.reports import UsageDay, day_start

_SUMS = ("inferences", "model_calls", "input_tokens", "output_tokens", "cost_nano", "unsettled_nano")

_Span = tuple[datetime, datetime]


class SqlUsage:
    """Core's UsageReport. Whole days of the billing timezone are those of `gateway usage report`."""

    def __init__(self, database: Database, zone: ZoneInfo) -> None:
        self._database, self._zone = database, zone
        self._books = SqlBooks(database, zone)

    async def roll_up(self, start: datetime, end: datetime, team: str | None) -> Sequence[UsageRow]:
        """Rows of the half-open interval [start, end), UTC, by paying team (or of all), sorted.

        Raises InvalidInput where it needs a part of a day of which only the sum is left, Unavailable.
        """
        first, after = _first_day(start, self._zone), end.astimezone(self._zone).date()
        if first >= after:
            rows = await self._read((start, end))
        else:
            days = await self._books.days(first, after)
            before, behind = (start, day_start(first, self._zone)), (day_start(after, self._zone), end)
            rows = [*await self._read(before), *map(_of_day, days), *await self._read(behind)]
        return _merged(row for row in rows if team in (None, row.team))

    async def _read(self, span: _Span) -> list[UsageRow]:
        """A part of a day, from the rows."""
        start, end = span
        if start >= end:
            return []
        added = ((price_adjustment, price_adjustment.c.created_at), (gpu_share, gpu_share.c.hour))
        queries = [_spent(span), *(_added(table, at, span) for table, at in added)]
        async with self._database.snapshot() as connection:
            await self._check_kept(connection, start)
            rows = [UsageRow(model=None, **row) for row in (await connection.execute(_counted(span))).mappings()]
            for query in queries:
                rows += [UsageRow(**row) for row in (await connection.execute(query)).mappings()]
            return rows

    async def _check_kept(self, connection: AsyncConnection, start: datetime) -> None:
        gone = await removed(connection)
        if gone is not None and start < day_start(first := gone.first_day(self._zone), self._zone):
            raise InvalidInput(f"Before {first} there are sums of whole days, and no rows any more.")


def _first_day(start: datetime, zone: ZoneInfo) -> date:
    """The first day that begins at `start` or later."""
    day = start.astimezone(zone).date()
    return day if day_start(day, zone) >= start else day + timedelta(days=1)


def _counted(span: _Span) -> Select[Any]:
    rows = inference.c
    query: Select[Any] = select(rows.payer_team.label("team"), rows.task, func.count().label("inferences"))
    return _within(query, rows.received_at, span).group_by(rows.payer_team, rows.task)


def _spent(span: _Span) -> Select[Any]:
    calls = model_call.c
    query: Select[Any] = select(
        calls.payer_team.label("team"),
        calls.task,
        calls.model,
        func.count().label("model_calls"),
        total(calls.input_tokens).label("input_tokens"),
        total(calls.output_tokens).label("output_tokens"),
        total(calls.cost_nano).label("cost_nano"),
        total(case((calls.settled, 0), else_=calls.cost_nano)).label("unsettled_nano"),
    )
    return _within(query, calls.started_at, span).group_by(calls.payer_team, calls.task, calls.model)


def _added(table: Table, at: Column[datetime], span: _Span) -> Select[Any]:
    """Charges that are no calls, per team, task and model."""
    who = (table.c.payer_team.label("team"), table.c.task, table.c.model)
    query: Select[Any] = select(*who, total(table.c.cost_nano).label("cost_nano"))
    return _within(query, at, span).group_by(table.c.payer_team, *who[1:])


def _within(query: Select[Any], at: Column[datetime], span: _Span) -> Select[Any]:
    start, end = span
    return query.where(at >= start, at < end)


def _of_day(day: UsageDay) -> UsageRow:
    sums = {name: getattr(day, name) for name in _SUMS}
    return UsageRow(team=day.payer_team, task=day.task, model=day.model or None, **sums)


def _merged(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """One row per team, task and model, sorted."""
    merged: dict[tuple[str, str, str], UsageRow] = {}
    for row in rows:
        key = (row.team, row.task, row.model or "")
        merged[key] = _sum(merged[key], row) if key in merged else row
    return [merged[key] for key in sorted(merged)]


def _sum(a: UsageRow, b: UsageRow) -> UsageRow:
    return structs.replace(a, **{name: getattr(a, name) + getattr(b, name) for name in _SUMS})
