"""Teams and keys for people at a terminal: one short-lived connection a command."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.keys import SqlKeys
from gateway.adapters.sql.teams import SqlTeams
from gateway.core.errors import NotFound
from gateway.core.keys import mint
from gateway.core.records import Team


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """The database, closed after the block."""
    database = Database(url)
    try:
        yield database
    finally:
        await database.aclose()


async def new_key(url: str, team: str, scopes: frozenset[str], expires_at: datetime | None = None) -> str:
    """Make the team if there is none, and a key for it: its full text, shown once. Raises Unavailable."""
    now = datetime.now(UTC)
    async with opened(url) as database:
        if await SqlTeams(database).find(team) is None:
            await SqlTeams(database).add(Team(team, now))
        key, text = mint(team, scopes, now, expires_at)
        await SqlKeys(database).add(key)
    return text


async def rotated_key(url: str, key_id: str, overlap: timedelta) -> str:
    """A new key in the place of an old one, which works on through the overlap: the new one's full text, shown once.

    Raises NotFound, Unavailable.
    """
    now = datetime.now(UTC)
    async with opened(url) as database:
        keys = SqlKeys(database)
        old = await keys.find(key_id)
        if old is None or not old.usable(now):
            raise NotFound(f"There is no key `{key_id}` in use.")
        new, text = mint(old.team, old.scopes, now, old.expires_at)
        await keys.rotate(old.id, new, now + overlap)
    return text
