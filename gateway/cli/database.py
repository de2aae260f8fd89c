"""What a command does with the database: open it, work, close it, and tell errors without a traceback."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from gateway.core.errors import GatewayError
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.adapters.sql.books import SqlBooks
    from gateway.adapters.sql.database import Database

T = TypeVar("T")

# Sums over a whole ledger take longer than a request may.
TIMEOUT_S = 600.0


def with_database(settings: Settings, work: "Callable[[Database], Awaitable[T]]") -> T:
    """The result of a command's work; an error that a caller may see is told without a traceback."""
    from gateway.adapters.sql.database import Database

    async def run() -> T:
        database = Database(settings.database, TIMEOUT_S)
        try:
            return await work(database)
        finally:
            await database.aclose()

    try:
        return asyncio.run(run())
    except GatewayError as error:
        raise click.ClickException(error.detail) from error


def with_books(settings: Settings, work: "Callable[[SqlBooks], Awaitable[T]]") -> T:
    """The same, on the books of the billing timezone."""
    from gateway.adapters.sql.books import SqlBooks

    return with_database(settings, lambda database: work(SqlBooks(database, settings.zone)))
