"""Bring a database to the schema of this version. Migrations are found in `GATEWAY_HOME/migrations`."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.database import Database, open_engine
from gateway.adapters.sql.partitions import ensure_partitions, lock

# Changing a large table takes longer than serving ever may.
MIGRATION_TIMEOUT_S = 600.0

Change = Callable[[Config], None]


async def upgrade(url: str, migrations: Path, revision: str = "head") -> None:
    """Migrate up and make the partitions of the coming months. Safe to call again, and from many processes at once.

    Raises what the drivers raise: this is for a person at a terminal, or for start-up.
    """
    await _migrate(url, lambda config: command.upgrade(config, revision), migrations, partitions=revision == "head")


async def downgrade(url: str, migrations: Path, revision: str) -> None:
    """Migrate down to `revision`; `base` removes everything."""
    await _migrate(url, lambda config: command.downgrade(config, revision), migrations, partitions=False)


async def is_current(database: Database, migrations: Path) -> bool:
    """Whether the database has the schema of these migrations, or that of a later release. Raises Unavailable.

    A revision that is unknown here is a later one: migrations only add, so this release runs on it.
    """
    known = ScriptDirectory(str(migrations))
    async with database.begin() as connection:
        revision = await connection.run_sync(_revision)
    if revision is None:
        return False
    return revision == known.get_current_head() or revision not in {each.revision for each in known.walk_revisions()}


async def prepare_partitions(database: Database, now: datetime) -> None:
    """Make the ledger's coming months ready: at start-up and once a day. Raises Unavailable."""
    async with database.begin() as connection:
        await ensure_partitions(connection, now)


async def _migrate(url: str, change: Change, migrations: Path, *, partitions: bool) -> None:
    engine = open_engine(url, MIGRATION_TIMEOUT_S)
    try:
        async with engine.begin() as connection:
            await _lock(connection)
            config = Config()
            config.set_main_option("script_location", str(migrations).replace("%", "%%"))
            await connection.run_sync(_run, config, change)
            if partitions:
                await ensure_partitions(connection, datetime.now(UTC))
    finally:
        await engine.dispose()


async def _lock(connection: AsyncConnection) -> None:
    if connection.dialect.name == "postgresql":
        await lock(connection)
    else:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")


def _run(connection: Connection, config: Config, change: Change) -> None:
    config.attributes["connection"] = connection
    change(config)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
