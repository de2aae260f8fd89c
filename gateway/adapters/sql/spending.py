"""The ledger as budgets see it: what was spent since when, and what is being spent."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.sums import total
from gateway.adapters.sql.sweep import intent_of
from gateway.adapters.sql.tables import intent, model_call
from gateway.core.budgets import Snapshot, Spending
from gateway.core.inference import Usage


class SqlSpending:
    """Core's SpendingRecord."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def snapshot(self, starts: Iterable[datetime]) -> Snapshot:
        """All of it as of one moment. Raises Unavailable."""
        async with self._database.snapshot() as connection:
            since = {start: await _since(connection, start) for start in starts}
            rows = (await connection.execute(select(intent).order_by(intent.c.id))).mappings()
            return Snapshot(since, [intent_of(row) for row in rows])


async def _since(connection: AsyncConnection, start: datetime) -> list[Spending]:
    calls = model_call.c
    whose = (calls.task, calls.caller_team, calls.key_id)
    provisional = total(func.coalesce(calls.provisional_nano, 0))
    sums = (total(calls.input_tokens), total(calls.output_tokens), total(calls.cost_nano), provisional)
    query = select(*whose, *sums).where(calls.started_at >= start).group_by(*whose)
    return [
        Spending(task, team, key_id, Usage(*usage)) for task, team, key_id, *usage in (await connection.execute(query))
    ]
