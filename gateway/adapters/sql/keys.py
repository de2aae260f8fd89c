"""API keys over SQL."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import structs
from sqlalchemy import RowMapping, case, insert, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import api_key
from gateway.adapters.sql.types import Instant
from gateway.core.audit import TERMINAL, Actor
from gateway.core.errors import NotFound
from gateway.core.keys import ApiKey


class SqlKeys:
    """Core's KeyStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key_id: str) -> ApiKey | None:
        """The key of that id, usable or not. Raises Unavailable."""
        async with self._database.begin() as connection:
            row = (await connection.execute(select(api_key).where(api_key.c.id == key_id))).mappings().first()
        return _key(row) if row is not None else None

    async def add(self, key: ApiKey, by: Actor = TERMINAL) -> None:
        """Store a new key. Raises NotFound where the team does not exist, Unavailable."""
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(api_key).values(_row(key)))
                await note(connection, by, "key_created", key.id, key.created_at, **_described(key))
        except IntegrityError as error:
            raise NotFound(f"There is no team `{key.team}`.") from error

    async def rotate(self, key_id: str, new: ApiKey, until: datetime, by: Actor = TERMINAL) -> None:
        """Store `new`; the old key is refused from `until` on. Raises NotFound, Unavailable."""
        async with self._database.begin() as connection:
            await _refuse_from(connection, key_id, until)
            await connection.execute(insert(api_key).values(_row(new)))
            detail = {"replaces": key_id, "old_key_until": until.isoformat(), **_described(new)}
            await note(connection, by, "key_rotated", new.id, new.created_at, **detail)

    async def of_team(self, team: str | None) -> Sequence[ApiKey]:
        """All keys of a team, or of all, oldest first. Raises Unavailable."""
        query = select(api_key).order_by(api_key.c.created_at, api_key.c.id)
        if team is not None:
            query = query.where(api_key.c.team == team)
        async with self._database.begin() as connection:
            return [_key(row) for row in (await connection.execute(query)).mappings()]

    async def revoke(self, key_id: str, at: datetime, by: Actor = TERMINAL) -> None:
        """From `at` on the key is refused; of two revocations the earlier counts. Raises NotFound, Unavailable."""
        async with self._database.begin() as connection:
            await _refuse_from(connection, key_id, at)
            await note(connection, by, "key_revoked", key_id, at)


async def _refuse_from(connection: AsyncConnection, key_id: str, at: datetime) -> None:
    earlier = case((api_key.c.revoked_at <= at, api_key.c.revoked_at), else_=literal(at, Instant))
    changed = await connection.execute(update(api_key).where(api_key.c.id == key_id).values(revoked_at=earlier))
    if changed.rowcount == 0:
        raise NotFound(f"There is no key `{key_id}`.")


def _row(key: ApiKey) -> dict[str, Any]:
    return {**structs.asdict(key), "scopes": sorted(key.scopes)}


def _described(key: ApiKey) -> dict[str, Any]:
    """What the audit log says of a key; never anything of its secret."""
    expires_at = key.expires_at.isoformat() if key.expires_at else None
    return {"team": key.team, "scopes": sorted(key.scopes), "expires_at": expires_at}


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**{**row, "scopes": frozenset(row["scopes"])})
