"""What a fingerprint stood for: written once, when a version of a task is first served."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import fingerprint as fingerprint_table


class SqlFingerprints:
    """fingerprint → the configuration that it is the hash of."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remember(self, fingerprint: str, task: str, config: Mapping[str, Any], now: datetime) -> None:
        """Does nothing where it is known. `config` is JSON. Raises Unavailable."""
        insert = postgres_insert if self._database.postgres else sqlite_insert
        row = {"fingerprint": fingerprint, "task": task, "config": dict(config), "first_seen": now}
        async with self._database.begin() as connection:
            await connection.execute(insert(fingerprint_table).values(row).on_conflict_do_nothing())

    async def find(self, fingerprint: str) -> Mapping[str, Any] | None:
        """The configuration, or None for a fingerprint that was never served. Raises Unavailable."""
        query = select(fingerprint_table.c.config).where(fingerprint_table.c.fingerprint == fingerprint)
        async with self._database.begin() as connection:
            config: Mapping[str, Any] | None = (await connection.execute(query)).scalar_one_or_none()
            return config
