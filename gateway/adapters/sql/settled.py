"""Up to when the ledger is complete: from then on back, its rows never change, and none is added."""

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.tables import intent

# An inference that began before midnight is recorded well within this time after it.
SETTLING = timedelta(minutes=10)


async def settled_until(connection: AsyncConnection, now: datetime) -> datetime:
    """Nothing that began before this instant is still under way."""
    oldest = (await connection.execute(select(intent.c.created_at).order_by(intent.c.id).limit(1))).scalar()
    return now - SETTLING if oldest is None else min(now - SETTLING, oldest)
