"""Migrations, partitions, and what the schema refuses, on both databases."""

import asyncio
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import IntegrityError
from stories import inference, intent, invocation

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.migrate import downgrade, is_current, prepare_partitions, upgrade
from gateway.adapters.sql.partitions import drop_before, ensure_partitions, first_id
from gateway.adapters.sql.tables import APPEND_ONLY, LEDGER, metadata
from gateway.core.errors import Unavailable

MIGRATIONS = Path(__file__).parents[3] / "migrations"


async def _partitions(database: Database, table: str) -> set[str]:
    async with database.begin() as connection:
        found = await connection.exec_driver_sql(
            f"SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            f"WHERE i.inhparent = '{table}'::regclass"
        )
        return set(found.scalars())


async def test_down_and_up_again(database_url: str, database: Database) -> None:
    """Migrating down removes every table; up again makes the same ones, and both ways may be repeated."""
    assert await is_current(database, MIGRATIONS)
    await downgrade(database_url, MIGRATIONS, "base")
    async with database.begin() as connection:
        assert await connection.run_sync(lambda c: inspect(c).get_table_names()) == ["alembic_version"]
    assert not await is_current(database, MIGRATIONS)
    for _ in range(2):
        await upgrade(database_url, MIGRATIONS)
    assert await is_current(database, MIGRATIONS)


async def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    """Alembic finds no difference between `tables.py` and the migrated database: columns, types, keys, indexes."""

    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "include_name": _not_a_partition}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with database.begin() as connection:
        assert await connection.run_sync(differences) == []


def _not_a_partition(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in metadata.tables


async def test_processes_may_migrate_at_once(postgres_url: str) -> None:
    """Replicas that start together migrate one after the other; all of them succeed."""
    await asyncio.gather(*(upgrade(postgres_url, MIGRATIONS) for _ in range(3)))


@pytest.mark.parametrize("table", APPEND_ONLY)
async def test_what_is_append_only_cannot_be_updated(table: str, database: Database) -> None:
    """Every append-only table has a trigger that fires on UPDATE."""
    query = (
        "SELECT count(*) FROM pg_trigger WHERE tgname = '{0}_append_only' AND tgenabled = 'O'"
        if database.postgres
        else "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name = '{0}_append_only'"
    )
    async with database.begin() as connection:
        assert (await connection.exec_driver_sql(query.format(table))).scalar_one() >= 1


@pytest.mark.parametrize("table", LEDGER)
async def test_a_row_of_the_ledger_cannot_be_updated(table: str, ledger: SqlLedger, database: Database) -> None:
    """An UPDATE of recorded money is refused by the database itself."""
    asked = invocation()
    await ledger.record(inference(asked, intent(asked)))
    await _refused(database, f"UPDATE {table} SET cost_nano = 0")


async def test_on_postgres_not_even_a_partition_lets_a_row_go(postgres_url: str) -> None:
    """DELETE is refused too, also on the partition itself: rows go only with their month."""
    await upgrade(postgres_url, MIGRATIONS)
    database, now = Database(postgres_url), datetime.now(UTC)
    await _insert_row(database, first_id(now))
    for statement in ("DELETE FROM inference", f"DELETE FROM inference_{now:%Y%m}"):
        await _refused(database, statement)
    await database.aclose()


async def test_coming_months_have_partitions(postgres_url: str) -> None:
    """This month, the next three and a default are there after migrating; more are made in time."""
    await upgrade(postgres_url, MIGRATIONS)
    database = Database(postgres_url)
    now = datetime.now(UTC)
    first = await _partitions(database, "model_call")
    assert len(first) == 5
    assert {f"model_call_{now:%Y%m}", "model_call_default"} <= first
    await prepare_partitions(database, datetime(2030, 12, 31, 23, 59, tzinfo=UTC))
    later = await _partitions(database, "model_call")
    assert later - first == {f"model_call_{month}" for month in (203012, 203101, 203102, 203103)}
    await database.aclose()


async def test_stray_rows_move_to_their_month(postgres_url: str) -> None:
    """A row that no month was ready for waits in the default partition, and moves when its month is made."""
    await upgrade(postgres_url, MIGRATIONS)
    database = Database(postgres_url)
    at = datetime(2031, 5, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    await _insert_row(database, first_id(at))
    assert await _where(database) == "inference_default"
    async with database.begin() as connection:
        await ensure_partitions(connection, at)
    assert await _where(database) == "inference_203105"
    await database.aclose()


async def test_retention_drops_whole_months(postgres_url: str) -> None:
    """Partitions of earlier months go with all their rows; the month itself stays."""
    await upgrade(postgres_url, MIGRATIONS)
    database = Database(postgres_url)
    async with database.begin() as connection:
        await ensure_partitions(connection, datetime(2020, 1, 15, tzinfo=UTC))
        dropped = await drop_before(connection, date(2020, 3, 1))
    assert dropped == sorted(f"{table}_2020{month}" for table in LEDGER for month in ("01", "02"))
    assert "inference_202003" in await _partitions(database, "inference")
    await database.aclose()


async def test_retention_on_sqlite_deletes_rows(tmp_path: Path) -> None:
    """SQLite has no partitions: rows of earlier months are deleted, later ones stay."""
    url = f"sqlite:///{tmp_path}/gateway.db"
    await upgrade(url, MIGRATIONS)
    database = Database(url)
    for day in (datetime(2020, 2, 29, tzinfo=UTC), datetime(2020, 3, 1, tzinfo=UTC)):
        await _insert_row(database, first_id(day))
    async with database.begin() as connection:
        await drop_before(connection, date(2020, 3, 1))
        left = await connection.exec_driver_sql("SELECT id FROM inference")
        assert left.scalars().all() == [first_id(datetime(2020, 3, 1, tzinfo=UTC))]
    await database.aclose()


async def _refused(database: Database, statement: str) -> None:
    with pytest.raises((Unavailable, IntegrityError)) as refused:
        async with database.begin() as connection:
            await connection.exec_driver_sql(statement)
    assert "append-only" in f"{refused.value} {refused.value.__cause__}"


async def _where(database: Database) -> str:
    async with database.begin() as connection:
        return str((await connection.exec_driver_sql("SELECT tableoid::regclass::text FROM inference")).scalar_one())


async def _insert_row(database: Database, id_: str) -> None:
    """A row with the id given, and as little else as the table allows."""
    at = datetime.now(UTC)
    async with database.begin() as connection:
        await connection.execute(
            metadata.tables["inference"].insert(),
            {
                **dict.fromkeys(("kind", "task", "caller_team", "owner_team", "payer_team", "key_id", "cache"), "x"),
                **dict.fromkeys(("input_tokens", "output_tokens", "cost_nano", "duration_ms", "upstream_ms"), 0),
                "id": id_,
                "status": "failed",
                "received_at": at,
            },
        )
