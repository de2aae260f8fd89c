"""Charges that are no calls: corrected prices, and hours of GPUs that were shared out."""

from collections.abc import Iterable
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, case, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.sums import total
from gateway.adapters.sql.tables import gpu_share, price_adjustment
from gateway.core.reports import ADJUSTMENT, GPU_HOURS, IDLE_GPU_HOURS, UsageDay

_WHO = ("day", "payer_team", "caller_team", "owner_team", "task", "model")


async def charged(connection: AsyncConnection, start: date, end: date) -> list[UsageDay]:
    """The charges of the days [start, end)."""
    kind = case((gpu_share.c.task == "", IDLE_GPU_HOURS), else_=GPU_HOURS)
    adjustments = _summed(price_adjustment, start, end, (price_adjustment.c.corrects, literal(ADJUSTMENT)))
    hours = _summed(gpu_share, start, end, (literal(None), kind))
    found = [*await connection.execute(adjustments), *await connection.execute(hours)]
    return [_charge(*row) for row in found]


def _summed(table: Table, start: date, end: date, said: Iterable[ColumnElement[Any]]) -> Select[Any]:
    who = [*(table.c[name] for name in _WHO), *said]
    query: Select[Any] = select(*who, total(table.c.cost_nano))
    return query.where(table.c.day >= start, table.c.day < end).group_by(*who)


def _charge(*row: Any) -> UsageDay:
    *who, corrects, kind, cost_nano = row
    about = corrects.isoformat() if corrects is not None else ""
    return UsageDay(**dict(zip(_WHO, who, strict=True)), kind=kind, corrects=about, cost_nano=cost_nano)
