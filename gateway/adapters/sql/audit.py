"""The audit log over SQL. A trigger refuses whoever would change a row of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import uuid_utils
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import audit_log
from gateway.core.audit import Act, ActName, Actor


async def note(connection: AsyncConnection, by: Actor, act: ActName, subject: str, at: datetime, **detail: Any) -> None:
    """Write an act in the transaction that does it: both are durable, or neither. `detail` is JSON."""
    row = {
        "id": str(uuid_utils.uuid7()),
        "actor_team": by.team,
        "actor_key_id": by.key_id,
        "act": act,
        "subject": subject,
        "detail": detail,
        "created_at": at,
    }
    await connection.execute(insert(audit_log).values(row))


class SqlAudit:
    """Core's AuditLog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def latest(self, limit: int, before: str | None = None) -> Sequence[Act]:
        """The newest acts first; see the port. Raises Unavailable."""
        query = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit_log.c.id < before)
        async with self._database.begin() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            Act(
                id=row["id"],
                at=row["created_at"],
                by=Actor(row["actor_team"], row["actor_key_id"]),
                act=row["act"],
                subject=row["subject"],
                detail=row["detail"] or {},
            )
            for row in rows
        ]
