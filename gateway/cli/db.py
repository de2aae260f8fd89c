"""gateway db."""

import asyncio
import os

import click

from gateway import settings as process_settings


@click.group()
def db() -> None:
    """The database schema."""


@db.command()
def upgrade() -> None:
    """Bring the schema to the newest version. Safe to run while older gateways serve."""
    from gateway.adapters.sql.migrate import upgrade as run

    settings = process_settings.read(os.environ)
    settings.state_path.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(settings.database, settings.home_path / "migrations"))
    click.echo("the schema is up to date")
