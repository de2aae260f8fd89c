"""Charges that are no calls: what is added to the ledger's sums when prices are corrected."""

from datetime import date
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.tables import price_adjustment
from gateway.adapters.sql.usage import total
from gateway.core.reports import ADJUSTMENT, UsageDay


async def charged(connection: AsyncConnection, start: date, end: date) -> list[UsageDay]:
    """The charges of the days [start, end)."""
    rows = price_adjustment.c
    who = (rows.day, rows.payer_team, rows.caller_team, rows.owner_team, rows.task, rows.model, rows.corrects)
    query = select(*who, total(rows.cost_nano).label("cost_nano")).where(rows.day >= start, rows.day < end)
    found = (await connection.execute(query.group_by(*who))).mappings()
    return [_adjustment(**row) for row in found]


def _adjustment(corrects: date, **values: Any) -> UsageDay:
    return UsageDay(kind=ADJUSTMENT, corrects=corrects.isoformat(), **values)
