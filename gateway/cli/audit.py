"""gateway audit."""

import click
import msgspec

from gateway.cli.access import database_url, finish


@click.group()
def audit() -> None:
    """Administrative acts: who did what to which team or key."""


@audit.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def list_acts(limit: int) -> None:
    """The newest acts first: when, who, what, to whom, and the particulars as JSON."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.audit import SqlAudit

    async def run() -> None:
        async with opened(database_url()) as database:
            for act in await SqlAudit(database).latest(limit):
                detail = msgspec.json.encode(act.detail).decode()
                click.echo(f"{act.at.isoformat(timespec='seconds')}  {act.by}  {act.act}  {act.subject}  {detail}")

    finish(run())
