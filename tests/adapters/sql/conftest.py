"""What the tests of the SQL adapter share."""

from collections.abc import AsyncIterator

import pytest
from held_queue import Queue

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.ledger import SqlLedger, open_ledger


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Connections to a migrated database of either kind."""
    database = Database(database_url)
    yield database
    await database.aclose()


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[SqlLedger]:
    """The ledger of the same database."""
    ledger = open_ledger(database_url)
    yield ledger
    await ledger.aclose()


@pytest.fixture
async def queue(database: Database, ledger: SqlLedger) -> Queue:
    """An empty queue of held items."""
    return Queue(database, ledger)
