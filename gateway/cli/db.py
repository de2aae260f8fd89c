"""gateway db."""

import asyncio
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.database import with_database
from gateway.core.prices import from_nano

if TYPE_CHECKING:
    from gateway.adapters.sql.database import Database
    from gateway.adapters.sql.retention import Removal


@click.group()
def db() -> None:
    """The database: its schema, and how long rows of the ledger are kept."""


@db.command()
def upgrade() -> None:
    """Bring the schema to the newest version. Safe to run while older gateways serve."""
    from gateway.adapters.sql.migrate import upgrade as run

    settings = process_settings.read(os.environ)
    settings.state_path.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(settings.database, settings.home_path / "migrations"))
    click.echo("the schema is up to date")


@db.command()
@click.option("--keep-months", type=click.IntRange(min=1), required=True, help="Whole months kept, beside this one.")
@click.option("--write", is_flag=True, help="Remove the rows. Without it they are only counted.")
def retention(keep_months: int, write: bool) -> None:
    """Remove ledger rows of closed months. Their sums, the stored exports and the audit log stay.

    Months are those of UTC. A billing month that was not closed with `gateway usage close` is refused.
    """
    settings = process_settings.read(os.environ)

    async def run(database: "Database") -> "Removal":
        from gateway.adapters.sql.books import SqlBooks
        from gateway.adapters.sql.retention import SqlRetention

        now, kept = datetime.now(UTC), SqlRetention(database, settings.zone)
        await SqlBooks(database, settings.zone).close_days(now)
        return await (kept.write(keep_months, now) if write else kept.find(keep_months, now))

    removal = with_database(settings, run)
    Console().print(_removal_table(removal, settings.currency))
    click.echo("removed" if write else "nothing is removed yet: --write")


def _removal_table(removal: "Removal", currency: str) -> Table:
    months = ", ".join(f"{month:%Y-%m}" for month in removal.months) or "none"
    table = Table("table", title=f"before {removal.removed.before:%Y-%m}; billing months: {months}")
    table.add_column("rows", justify="right")
    for name, rows in removal.rows.items():
        table.add_row(name, f"{rows:,}")
    table.add_row(f"cost of these calls, {currency}", from_nano(removal.removed.calls.cost_nano))
    return table
