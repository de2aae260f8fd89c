"""The way to the database: URLs, connections with time limits, and what becomes of the drivers' exceptions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import structlog
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.core.errors import InvalidInput, Unavailable

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_S = 5.0
_SQLITE = "sqlite:///"
# WAL with NORMAL: a killed process loses nothing that was committed; only a power cut may lose the last commits.
SQLITE_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA busy_timeout = {int(STATEMENT_TIMEOUT_S * 1000)}",
)


def is_postgres(url: str) -> bool:
    """Whether a database URL names a Postgres. Raises ValueError for one that names neither database."""
    if url.startswith(("postgresql://", "postgres://")):
        return True
    if url.startswith(_SQLITE):
        return False
    raise ValueError("a database URL starts with postgresql:// or sqlite:///")


def sqlite_file(url: str) -> Path:
    """The file of `sqlite:///relative` or `sqlite:////absolute`."""
    return Path(url.removeprefix(_SQLITE))


async def connect_postgres(url: str, timeout_s: float = STATEMENT_TIMEOUT_S) -> Any:
    """A connection whose every statement ends within `timeout_s`. The URL is libpq's, `sslmode` and all.

    Raises OSError, TimeoutError or asyncpg's errors.
    """
    milliseconds = str(int(timeout_s * 1000))
    return await asyncpg.connect(
        url,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=timeout_s,
        server_settings={
            "application_name": "taskgate",
            "timezone": "UTC",
            "statement_timeout": milliseconds,
            "lock_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
        },
    )


def open_engine(url: str, timeout_s: float = STATEMENT_TIMEOUT_S) -> AsyncEngine:
    """An engine over either database; nothing is connected yet."""
    if is_postgres(url):
        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: connect_postgres(url, timeout_s),
            pool_size=5,
            max_overflow=5,
            pool_timeout=CONNECT_TIMEOUT_S,
            pool_pre_ping=True,
        )
    file = sqlite_file(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A transaction that writes takes the write lock when it begins: two of them wait instead of failing half-way.
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"isolation_level": "IMMEDIATE"})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


class Database:
    """Connections for everything but the ledger's writer, which has its own. One per process."""

    def __init__(self, url: str, timeout_s: float = STATEMENT_TIMEOUT_S) -> None:
        """Raises ValueError for a URL of another database."""
        self.url = url
        self.postgres = is_postgres(url)
        self._engine = open_engine(url, timeout_s)
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at the end of the block.

        Raises Unavailable when the database is unreachable or slow, InvalidInput for text that it cannot store;
        IntegrityError passes through, for only the block knows what it means.
        """
        try:
            async with asyncio.timeout(self._timeout_s + CONNECT_TIMEOUT_S), self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except (SQLAlchemyError, asyncpg.PostgresError, UnicodeError, OSError, TimeoutError) as error:
            if _is_bad_text(error):
                raise InvalidInput("The text holds characters that cannot be stored.") from error
            if _lacks_tables(error):
                raise Unavailable("The database lacks tables: `gateway db upgrade` makes them.") from error
            log.warning("database_unavailable", error=type(error).__name__)
            raise Unavailable("The database cannot be reached.", retry_after_s=1) from error

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """One transaction to read in, all of it as of one moment. Raises as `begin` does.

        Without it every statement sees another moment, and a row on its way from table to table is missed, or is seen
        twice.
        """
        async with self.begin() as connection:
            one_moment = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ" if self.postgres else "BEGIN"
            await connection.exec_driver_sql(one_moment)
            yield connection

    async def ping(self) -> None:
        """Raises Unavailable unless the database answers."""
        async with self.begin() as connection:
            await connection.exec_driver_sql("SELECT 1")

    async def aclose(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _is_bad_text(error: BaseException) -> bool:
    """Class 22 of SQLSTATE is bad data; a lone surrogate does not even become bytes."""
    return any(isinstance(cause, UnicodeError) or _sqlstate(cause).startswith("22") for cause in _causes(error))


def _lacks_tables(error: BaseException) -> bool:
    return any(_sqlstate(cause) == "42P01" or "no such table" in str(cause) for cause in _causes(error))


def _causes(error: BaseException) -> tuple[BaseException | None, ...]:
    """What the driver raised, and what made it."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return original, getattr(original, "__cause__", None)


def _sqlstate(error: BaseException | None) -> str:
    return str(getattr(error, "sqlstate", ""))
