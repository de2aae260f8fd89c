"""What a fingerprint stood for: written once, when a version of a task is first served."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import fingerprint as fingerprint_table
from gateway.core.versions import Version


class SqlFingerprints:
    """Core's Versions: fingerprint → the configuration that it is the hash of."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remember(self, fingerprint: str, task: str, config: Mapping[str, Any], now: datetime) -> None:
        """Does nothing where it is known. `config` is JSON. Raises Unavailable."""
        insert = postgres_insert if self._database.postgres else sqlite_insert
        row = {"fingerprint": fingerprint, "task": task, "config": dict(config), "first_seen": now}
        async with self._database.begin() as connection:
            await connection.execute(insert(fingerprint_table).values(row).on_conflict_do_nothing())

    async def of_task(self, task: str) -> Sequence[Version]:
        """Every version of a task, newest first, without `config`. Raises Unavailable."""
        table = fingerprint_table.c
        query = select(table.task, table.fingerprint, table.first_seen).where(table.task == task)
        async with self._database.begin() as connection:
            rows = await connection.execute(query.order_by(table.first_seen.desc(), table.fingerprint))
            return [Version(**row) for row in rows.mappings()]

    async def find(self, task: str, fingerprint: str) -> Version | None:
        """One version of a task, with its `config`. Raises Unavailable."""
        table = fingerprint_table.c
        query = select(fingerprint_table).where(table.task == task, table.fingerprint == fingerprint)
        async with self._database.begin() as connection:
            row = (await connection.execute(query)).mappings().first()
        return Version(**row) if row is not None else None
