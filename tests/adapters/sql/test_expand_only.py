"""Migrations only add: a gateway of the previous release runs on the schema of this one."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from msgspec import Struct
from sqlalchemy import Connection, Inspector, inspect

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.migrate import downgrade, is_current, upgrade
from gateway.adapters.sql.teams import SqlTeams
from gateway.core.errors import Unavailable

MIGRATIONS = Path(__file__).parents[3] / "migrations"
REVISIONS = [each.revision for each in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))]


class Shape(Struct, frozen=True):
    """What a writer of a table must know: types of columns, which of them it must give, and what it must not repeat."""

    columns: dict[str, str]
    required: frozenset[str]
    unique: frozenset[tuple[str, ...]]
    checks: frozenset[str]


@pytest.fixture(params=["sqlite", "postgres"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database without any table, on either kind."""
    from postgres import fresh_database

    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'steps.db'}"
        return
    async with fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


async def shapes(url: str) -> dict[str, Shape]:
    """Every table as it stands, without the partitions of tables."""

    def read(connection: Connection) -> dict[str, Shape]:
        inspector = inspect(connection)
        names = inspector.get_table_names()
        return {name: _shape(inspector, name) for name in names if not any(_is_part(name, other) for other in names)}

    database = Database(url)
    try:
        async with database.begin() as connection:
            return await connection.run_sync(read)
    finally:
        await database.aclose()


def _is_part(name: str, of: str) -> bool:
    month = name.removeprefix(f"{of}_")
    return month != name and (month.isdigit() or month == "default")


def _shape(inspector: Inspector, table: str) -> Shape:
    columns = inspector.get_columns(table)
    unique = [tuple(sorted(index["column_names"])) for index in inspector.get_indexes(table) if index["unique"]]
    unique += [tuple(sorted(each["column_names"])) for each in inspector.get_unique_constraints(table)]
    key = inspector.get_pk_constraint(table)["constrained_columns"]
    return Shape(
        {column["name"]: str(column["type"]) for column in columns},
        frozenset(c["name"] for c in columns if not c["nullable"] and c["default"] is None and not _counts(c)),
        frozenset([*unique, tuple(sorted(key))]),
        frozenset(str(check["sqltext"]) for check in inspector.get_check_constraints(table)),
    )


def _counts(column: Any) -> bool:
    return bool(column.get("autoincrement") is True or column.get("identity"))


async def test_no_migration_takes_anything_from_the_one_before(empty_url: str) -> None:
    """Tables and columns stay, with their types; nothing new is required, unique or checked in a table of before."""
    before: dict[str, Shape] = {}
    for revision in REVISIONS:
        await upgrade(empty_url, MIGRATIONS, revision)
        after = await shapes(empty_url)
        for table, old in before.items():
            assert table in after, f"{revision} drops {table}"
            new = after[table]
            assert old.columns.items() <= new.columns.items(), f"{revision} changes columns of {table}"
            assert new.required <= old.required, f"{revision} requires more of {table}"
            # The previous release leaves new columns NULL, and NULL repeats nothing.
            fresh = new.columns.keys() - old.columns.keys()
            assert all(fresh & set(key) for key in new.unique - old.unique), f"{revision} makes {table} more unique"
            assert new.checks <= old.checks, f"{revision} checks more of {table}"
        before = after


async def test_a_database_that_was_never_migrated_is_not_one_that_is_away(empty_url: str) -> None:
    """Who asks one without tables is told what makes them."""
    database = Database(empty_url)
    with pytest.raises(Unavailable, match="gateway db upgrade"):
        await SqlTeams(database).all()
    await database.aclose()


async def test_each_step_can_be_taken_back_and_again(empty_url: str) -> None:
    """From every revision down to the one before, and up again, the same tables result."""
    for before, revision in zip(["base", *REVISIONS], REVISIONS, strict=False):
        await upgrade(empty_url, MIGRATIONS, revision)
        made = await shapes(empty_url)
        await downgrade(empty_url, MIGRATIONS, before)
        await upgrade(empty_url, MIGRATIONS, revision)
        assert await shapes(empty_url) == made


async def test_the_previous_release_starts_on_the_new_schema_and_not_on_an_older_one(
    empty_url: str, tmp_path: Path
) -> None:
    """A revision that a release does not know is a later one, and good; one that it knows to be old is refused."""
    folder = tmp_path / "previous"
    await asyncio.to_thread(shutil.copytree, MIGRATIONS, folder)
    for script in (folder / "versions").glob(f"{REVISIONS[-1].split('_')[0]}*.py"):
        script.unlink()
    database = Database(empty_url)
    try:
        await upgrade(empty_url, MIGRATIONS)
        assert await is_current(database, folder)
        await downgrade(empty_url, MIGRATIONS, REVISIONS[-3])
        assert not await is_current(database, folder)
    finally:
        await database.aclose()
