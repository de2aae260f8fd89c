"""The ledger, summed."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import structs
from sqlalchemy import BigInteger, Column, ColumnElement, Select, Table, case, cast, func, select

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import gpu_share, inference, model_call, price_adjustment
from gateway.core.records import UsageRow

_SUMS = ("inferences", "model_calls", "input_tokens", "output_tokens", "cost_nano", "unsettled_nano")


class SqlUsage:
    """Core's UsageReport, straight from the rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def roll_up(self, start: datetime, end: datetime, team: str | None) -> Sequence[UsageRow]:
        """Rows of the half-open interval [start, end), UTC, by paying team (or of all), sorted. Raises Unavailable."""
        counted = _period(
            select(inference.c.payer_team.label("team"), inference.c.task, func.count().label("inferences")),
            inference,
            inference.c.received_at,
            (start, end, team),
        ).group_by(inference.c.payer_team, inference.c.task)
        spent = _period(_spending(), model_call, model_call.c.started_at, (start, end, team)).group_by(
            model_call.c.payer_team, model_call.c.task, model_call.c.model
        )
        added = [
            _period(_added(table), table, at, (start, end, team))
            for table, at in ((price_adjustment, price_adjustment.c.created_at), (gpu_share, gpu_share.c.hour))
        ]
        async with self._database.begin() as connection:
            rows = [UsageRow(model=None, **row) for row in (await connection.execute(counted)).mappings()]
            for query in (spent, *added):
                rows += [UsageRow(**row) for row in (await connection.execute(query)).mappings()]
        return _merged(rows)


def _spending() -> Select[Any]:
    calls = model_call.c
    return select(
        calls.payer_team.label("team"),
        calls.task,
        calls.model,
        func.count().label("model_calls"),
        total(calls.input_tokens).label("input_tokens"),
        total(calls.output_tokens).label("output_tokens"),
        total(calls.cost_nano).label("cost_nano"),
        total(case((calls.settled, 0), else_=calls.cost_nano)).label("unsettled_nano"),
    )


def _added(table: Table) -> Select[Any]:
    """Charges that are no calls, per team, task and model."""
    who = (table.c.payer_team.label("team"), table.c.task, table.c.model)
    return select(*who, total(table.c.cost_nano).label("cost_nano")).group_by(table.c.payer_team, *who[1:])


def _merged(rows: Sequence[UsageRow]) -> list[UsageRow]:
    """One row per team, task and model, sorted."""
    merged: dict[tuple[str, str, str], UsageRow] = {}
    for row in rows:
        key = (row.team, row.task, row.model or "")
        merged[key] = _sum(merged[key], row) if key in merged else row
    return [merged[key] for key in sorted(merged)]


def _sum(a: UsageRow, b: UsageRow) -> UsageRow:
    return structs.replace(a, **{name: getattr(a, name) + getattr(b, name) for name in _SUMS})


def total(column: ColumnElement[int]) -> ColumnElement[int]:
    """Postgres sums BIGINT to NUMERIC; the total of nano-dollars fits BIGINT up to nine billion dollars."""
    return cast(func.sum(column), BigInteger)


def _period(
    query: Select[Any], table: Table, at: Column[datetime], period: tuple[datetime, datetime, str | None]
) -> Select[Any]:
    start, end, team = period
    query = query.where(at >= start, at < end)
    return query if team is None else query.where(table.c.payer_team == team)
