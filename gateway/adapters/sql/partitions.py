"""Monthly partitions of the ledger on Postgres, by the time inside the UUIDv7 ids.

The first 48 bits of a UUIDv7 are milliseconds since 1970, so a range of ids is a range of time. A row that no month is
ready for falls into the DEFAULT partition; when its month is made, it moves there.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.adapters.sql.tables import LEDGER

MONTHS_AHEAD = 3
# Any number that nothing else in this database locks: one process at a time changes partitions or migrates.
_LOCK = 7_204_719_553


def first_id(at: datetime) -> str:
    """The smallest id that a UUIDv7 minted at `at` can have."""
    return str(UUID(int=int(at.timestamp() * 1000) << 80))


def next_month(month: date) -> date:
    """The first day of the month after."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def months_from(month: date, count: int) -> Iterator[date]:
    """`count` months, each by its first day."""
    month = month.replace(day=1)
    for _ in range(count):
        yield month
        month = next_month(month)


async def lock(connection: AsyncConnection) -> None:
    """Hold off everybody else who changes the schema, until this transaction ends."""
    await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


async def ensure_partitions(connection: AsyncConnection, now: datetime) -> None:
    """Make the partitions of this month and the next ones. Does nothing where they are there, or on SQLite."""
    if connection.dialect.name != "postgresql":
        return
    await lock(connection)
    there = await _existing(connection)
    for table in LEDGER:
        for month in months_from(now.astimezone(UTC).date(), 1 + MONTHS_AHEAD):
            if _name(table, month) not in there:
                await _make(connection, table, month)


async def drop_before(connection: AsyncConnection, month: date) -> list[str]:
    """Retention: remove all ledger rows of the months before `month`. Returns the partitions dropped.

    On SQLite the rows are deleted; the list is then empty.
    """
    if connection.dialect.name != "postgresql":
        for table in LEDGER:
            await connection.exec_driver_sql(f"DELETE FROM {table} WHERE id < ?", (_first_id_of(month),))
        return []
    await lock(connection)
    old = [
        name
        for name in sorted(await _existing(connection))
        if name[-6:].isdigit() and name[-6:] < f"{month:%Y%m}"
    ]  # fmt: skip
    for name in old:
        await connection.exec_driver_sql(f"DROP TABLE {name}")
    for table in LEDGER:
        await _drop_strays(connection, table, _first_id_of(month))
    return old


async def _drop_strays(connection: AsyncConnection, table: str, start: str) -> None:
    """Old rows that no month was ready for. Inside the table nobody may delete them; outside it is one of many."""
    strays = await connection.exec_driver_sql(f"SELECT 1 FROM {table}_default WHERE id < '{start}' LIMIT 1")
    if strays.first() is None:
        return
    for statement in (
        f"ALTER TABLE {table} DETACH PARTITION {table}_default",
        f"DELETE FROM {table}_default WHERE id < '{start}'",
        f"ALTER TABLE {table} ATTACH PARTITION {table}_default DEFAULT",
    ):
        await connection.exec_driver_sql(statement)


async def _existing(connection: AsyncConnection) -> set[str]:
    tables = ", ".join(f"'{table}'::regclass" for table in LEDGER)
    found = await connection.exec_driver_sql(
        f"SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent IN ({tables})"
    )
    return set(found.scalars())


async def _make(connection: AsyncConnection, table: str, month: date) -> None:
    """Stray rows of the month must leave the default partition first, or Postgres refuses the new one."""
    name, start, end = _name(table, month), _first_id_of(month), _first_id_of(next_month(month))
    for statement in (
        f"ALTER TABLE {table} DETACH PARTITION {table}_default",
        f"CREATE TABLE {name} PARTITION OF {table} FOR VALUES FROM ('{start}') TO ('{end}')",
        f"INSERT INTO {name} SELECT * FROM {table}_default WHERE id >= '{start}' AND id < '{end}'",
        f"DELETE FROM {table}_default WHERE id >= '{start}' AND id < '{end}'",
        f"ALTER TABLE {table} ATTACH PARTITION {table}_default DEFAULT",
    ):
        await connection.exec_driver_sql(statement)


def _name(table: str, month: date) -> str:
    return f"{table}_{month:%Y%m}"


def _first_id_of(month: date) -> str:
    return first_id(datetime(month.year, month.month, 1, tzinfo=UTC))
