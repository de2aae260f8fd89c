"""No call to the database lasts for ever, whatever is at the other end."""

import asyncio
import time

import pytest
from stories import intent, invocation

from gateway.adapters.sql.database import CONNECT_TIMEOUT_S, STATEMENT_TIMEOUT_S, Database
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.writers import open_writer
from gateway.core.errors import Unavailable

_MOST_S = 2 * (CONNECT_TIMEOUT_S + STATEMENT_TIMEOUT_S)


async def test_a_database_that_takes_connections_and_says_nothing_is_given_up() -> None:
    """Reads and the ledger's writer raise Unavailable in bounded time, both at once."""
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        url = f"postgresql://nobody@127.0.0.1:{server.sockets[0].getsockname()[1]}/none?sslmode=disable"
        database, ledger = Database(url), SqlLedger(open_writer(url), patience_s=0.0)
        started = time.monotonic()
        async with asyncio.timeout(_MOST_S):
            outcomes = await asyncio.gather(
                database.ping(), ledger.intend(intent(invocation())), return_exceptions=True
            )
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
        assert time.monotonic() - started < _MOST_S
        gone.set()
        await ledger.aclose()
        await database.aclose()


async def test_a_statement_that_takes_too_long_is_ended(postgres_url: str) -> None:
    """By the server, and by the client where the server does not."""
    database = Database(postgres_url, timeout_s=0.3)
    with pytest.raises(Unavailable):
        async with database.begin() as connection:
            await connection.exec_driver_sql("SELECT pg_sleep(30)")
    await database.aclose()
