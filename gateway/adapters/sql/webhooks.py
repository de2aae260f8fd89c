"""Webhooks of teams over SQL."""

from datetime import UTC, datetime, timedelta

from msgspec import structs
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from gateway.adapters.sql.audit import note
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import webhook as table
from gateway.core.audit import TERMINAL, Actor
from gateway.core.errors import NotFound
from gateway.core.webhooks import Webhook


class SqlWebhooks:
    """Core's Webhooks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, webhook: Webhook, by: Actor = TERMINAL) -> None:
        """Set or replace it. Raises NotFound where there is no such team, Unavailable."""
        try:
            async with self._database.begin() as connection:
                await connection.execute(delete(table).where(table.c.team == webhook.team))
                await connection.execute(insert(table).values(structs.asdict(webhook)))
                await note(connection, by, "webhook_set", webhook.team, webhook.created_at, url=webhook.url)
        except IntegrityError as error:
            raise NotFound(f"There is no team `{webhook.team}`.") from error

    async def of_team(self, team: str) -> Webhook | None:
        """The team's, if it has one. Raises Unavailable."""
        async with self._database.begin() as connection:
            row = (await connection.execute(select(table).where(table.c.team == team))).mappings().first()
        return Webhook(**row) if row is not None else None

    async def rotate(self, team: str, secret: str, now: datetime, overlap: timedelta, by: Actor = TERMINAL) -> Webhook:
        """Another secret; the one that it replaces counts through the overlap. Raises NotFound, Unavailable."""
        until = now + overlap
        turned = update(table).where(table.c.team == team).returning(*table.c)
        turned = turned.values(secret=secret, former_secret=table.c.secret, former_until=until)
        async with self._database.begin() as connection:
            row = (await connection.execute(turned)).mappings().first()
            if row is None:
                raise NotFound(f"The team `{team}` has no webhook.")
            await note(connection, by, "webhook_rotated", team, now, former_until=until.isoformat())
        return Webhook(**row)

    async def remove(self, team: str, by: Actor = TERMINAL) -> None:
        """From now on nothing is sent. Raises NotFound, Unavailable."""
        async with self._database.begin() as connection:
            if (await connection.execute(delete(table).where(table.c.team == team))).rowcount == 0:
                raise NotFound(f"The team `{team}` has no webhook.")
            await note(connection, by, "webhook_removed", team, datetime.now(UTC))
