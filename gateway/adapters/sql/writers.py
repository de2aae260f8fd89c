"""Two ways to write one batch of ledger rows in one transaction, each on a connection of its own.

Both speak to the driver directly: a batch is one statement per table on Postgres and one hop to a thread on SQLite,
which is several times cheaper per row than statements that are built for each batch.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import asyncpg  # type: ignore[import-untyped]

from gateway.adapters.sql.database import (
    SQLITE_PRAGMAS,
    STATEMENT_TIMEOUT_S,
    connect_postgres,
    is_postgres,
    sqlite_file,
)
from gateway.adapters.sql.rows import COLUMNS, Rows, rows_of
from gateway.adapters.sql.tables import LEDGER
from gateway.adapters.sql.types import to_microseconds
from gateway.core.inference import Inference, Intent

# An item is shared by the runs that join it while it waits; what an error held among them no clock delivers. A key is
# the claimant's, and may be used anew once it has expired.
_IF_NEW = {
    "review_item": (
        "ON CONFLICT (join_key) DO UPDATE SET runs = review_item.runs + 1, on_expiry = "
        "CASE WHEN review_item.on_expiry = 'deliver' THEN excluded.on_expiry ELSE review_item.on_expiry END"
    ),
    "review": "ON CONFLICT (id) DO NOTHING",
    "review_text": "ON CONFLICT (review_id) DO NOTHING",
    "audit_sample": "ON CONFLICT (id) DO NOTHING",
    "idempotency": (
        "ON CONFLICT (team, task, key) DO UPDATE SET body_hash = excluded.body_hash, "
        "inference_id = excluded.inference_id, created_at = excluded.created_at, expires_at = excluded.expires_at, "
        "outcome = excluded.outcome "
        "WHERE idempotency.inference_id = excluded.inference_id OR idempotency.expires_at <= excluded.created_at"
    ),
}

# Columns whose value the statement finds by what the row has there.
_FOUND = {("review", "item_id"): "(SELECT id FROM review_item WHERE join_key = {})"}

_FEW = 4
"""Rows of one table that are inserted rather than copied."""

# What a value that no column can hold raises before it reaches the server.
_BROKEN_VALUES = (ValueError, TypeError, AttributeError, OverflowError)


class RowRefused(Exception):
    """The database will not have these rows, however often they are offered. `duplicate`: it has such an id already."""

    def __init__(self, message: str, *, duplicate: bool) -> None:
        super().__init__(message)
        self.duplicate = duplicate


class ConnectionLost(Exception):
    """The database is unreachable, slow or busy; whether the batch was written is not known. Writing again is safe."""


class Writer(Protocol):
    """One connection that writes batches, opened when it is needed."""

    async def write(self, items: Iterable[Intent | Inference]) -> None:
        """All or nothing; durable on return. Raises RowRefused or ConnectionLost."""

    async def reason_of(self, inference_id: str) -> tuple[str | None] | None:
        """The recorded `reason` of an inference in a tuple, or None where it is not recorded. Raises ConnectionLost."""

    async def aclose(self) -> None:
        """Close the connection."""


def open_writer(url: str) -> Writer:
    """The writer for a database URL; nothing is connected yet. Raises ValueError for a URL of another database."""
    return PostgresWriter(url) if is_postgres(url) else SqliteWriter(sqlite_file(url))


class PostgresWriter:
    """Binary COPY through asyncpg, and INSERT for a few rows."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Any = None

    async def write(self, items: Iterable[Intent | Inference]) -> None:
        async with self._connected() as connection:
            rows = rows_of(items, _as_is)
            if rows.single_table:
                # One statement is a transaction of its own: an intent, or a cached answer, saves two round trips.
                await _copy(connection, rows)
                return
            async with connection.transaction():
                await _copy(connection, rows)

    async def reason_of(self, inference_id: str) -> tuple[str | None] | None:
        async with self._connected() as connection:
            row = await connection.fetchrow("SELECT reason FROM inference WHERE id = $1", inference_id)
            return (row["reason"],) if row is not None else None

    async def aclose(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """The connection. After anything but a refused row it is dropped: nobody knows what state it is in."""
        try:
            async with asyncio.timeout(2 * STATEMENT_TIMEOUT_S):
                if self._connection is None or self._connection.is_closed():
                    self._connection = await connect_postgres(self._url)
                yield self._connection
        except asyncpg.UniqueViolationError as error:
            raise RowRefused(str(error), duplicate=True) from error
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, *_BROKEN_VALUES) as error:
            raise RowRefused(type(error).__name__, duplicate=False) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            await self.aclose()
            raise ConnectionLost(type(error).__name__) from error
        except asyncio.CancelledError:
            await self.aclose()
            raise


async def _copy(connection: Any, rows: Rows) -> None:
    """Intents go first: whoever sweeps them takes the same locks in the same order."""
    await _add(connection, "intent", rows.intent)
    if rows.settled:
        await connection.execute("DELETE FROM intent WHERE id = ANY($1::uuid[])", rows.settled)
    for table in LEDGER:
        await _add(connection, table, getattr(rows, table))
    for table in _IF_NEW:
        if records := getattr(rows, table):
            await connection.executemany(_POSTGRES_INSERTS[table], records)


async def _add(connection: Any, table: str, records: Sequence[tuple[Any, ...]]) -> None:
    """A COPY waits twice for the server, which costs a lone row more than it saves: a few are inserted in one go."""
    if len(records) > _FEW:
        await connection.copy_records_to_table(table, records=records, columns=COLUMNS[table])
    elif records:
        await connection.executemany(_POSTGRES_INSERTS[table], records)


class SqliteWriter:
    """The standard library's driver on a thread of its own; one hop to it per batch."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def write(self, items: Iterable[Intent | Inference]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, tuple(items))

    async def reason_of(self, inference_id: str) -> tuple[str | None] | None:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._reason_of, inference_id)

    async def aclose(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _write(self, items: Iterable[Intent | Inference]) -> None:
        with _sqlite_errors():
            rows = rows_of(items, to_microseconds)
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, records in _sqlite_statements(rows):
                    connection.executemany(statement, records)
                connection.execute("COMMIT")
            except BaseException:
                # A full disk or a broken file may have rolled back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _reason_of(self, inference_id: str) -> tuple[str | None] | None:
        with _sqlite_errors():
            found = self._connected().execute("SELECT reason FROM inference WHERE id = ?", (inference_id,)).fetchone()
            return (found[0],) if found is not None else None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
            for pragma in SQLITE_PRAGMAS:
                connection.execute(pragma)
            self._connection = connection
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        duplicate = error.sqlite_errorname in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE")
        raise RowRefused(str(error), duplicate=duplicate) from error
    except (sqlite3.InterfaceError, sqlite3.DataError, sqlite3.ProgrammingError, *_BROKEN_VALUES) as error:
        raise RowRefused(type(error).__name__, duplicate=False) from error
    except (sqlite3.Error, OSError) as error:
        raise ConnectionLost(type(error).__name__) from error


def _sqlite_statements(rows: Rows) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    for table, statement in _SQLITE_INSERTS.items():
        if records := getattr(rows, table):
            yield statement, records
    if rows.settled:
        yield "DELETE FROM intent WHERE id = ?", [(id_,) for id_ in rows.settled]


def _insert(table: str, placeholders: Iterable[str]) -> str:
    values = [
        _FOUND.get((table, name), "{}").format(each) for name, each in zip(COLUMNS[table], placeholders, strict=True)
    ]
    columns = ", ".join(COLUMNS[table])
    return f"INSERT INTO {table} ({columns}) VALUES ({', '.join(values)}) {_IF_NEW.get(table, '')}"


def _as_is(at: datetime) -> datetime:
    return at


_SQLITE_INSERTS = {table: _insert(table, "?" * len(columns)) for table, columns in COLUMNS.items()}
_POSTGRES_INSERTS = {
    table: _insert(table, (f"${i}" for i, _ in enumerate(columns, 1))) for table, columns in COLUMNS.items()
}
