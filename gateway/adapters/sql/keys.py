"""API keys over SQL."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import RowMapping, case, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import api_key
from gateway.adapters.sql.types import Instant
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

    async def add(self, key: ApiKey) -> None:
        """Store a new key. Raises NotFound where the team does not exist, Unavailable."""
        values = {
            "id": key.id,
            "team": key.team,
            "scopes": sorted(key.scopes),
            "secret_hash": key.secret_hash,
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "revoked_at": key.revoked_at,
        }
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(api_key).values(values))
        except IntegrityError as error:
            raise NotFound(f"There is no team `{key.team}`.") from error

    async def of_team(self, team: str | None) -> Sequence[ApiKey]:
        """All keys of a team, or of all, oldest first. Raises Unavailable."""
        query = select(api_key).order_by(api_key.c.created_at, api_key.c.id)
        if team is not None:
            query = query.where(api_key.c.team == team)
        async with self._database.begin() as connection:
            return [_key(row) for row in (await connection.execute(query)).mappings()]

    async def revoke(self, key_id: str, at: datetime) -> None:
        """From `at` on the key is refused; of two revocations the earlier counts. Raises NotFound, Unavailable."""
        earlier = case((api_key.c.revoked_at <= at, api_key.c.revoked_at), else_=literal(at, Instant))
        change = update(api_key).where(api_key.c.id == key_id).values(revoked_at=earlier)
        async with self._database.begin() as connection:
            changed = await connection.execute(change)
        if changed.rowcount == 0:
            raise NotFound(f"There is no key `{key_id}`.")


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**{**row, "scopes": frozenset(row["scopes"])})
