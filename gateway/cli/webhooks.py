"""gateway webhooks."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from gateway.cli.access import database_url, finish
from gateway.core.webhooks import MessageStatus, Webhook, checked_url, new_secret


@click.group()
def webhooks() -> None:
    """Where teams hear of the outcomes of held items, and what they were told."""


def _reference(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.startswith(("env:", "file:")):
        raise click.BadParameter("is a reference, env:NAME or file:PATH")
    return value


_secret = click.option(
    "--secret",
    callback=_reference,
    help="A reference: env:NAME or file:PATH. Without it one is made and printed, once.",
)


@webhooks.command("set")
@click.argument("team")
@click.argument("url")
@_secret
def set_webhook(team: str, url: str, secret: str | None) -> None:
    """Tell a team's service at this address, signed as Standard Webhooks are."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.webhooks import SqlWebhooks

    made = None if secret else new_secret()

    async def run() -> None:
        webhook = Webhook(team, checked_url(url), secret or str(made), datetime.now(UTC))
        async with opened(database_url()) as database:
            await SqlWebhooks(database).put(webhook)
        if made:
            click.echo(made)

    finish(run())


@webhooks.command("rotate")
@click.argument("team")
@_secret
@click.option("--overlap-hours", type=click.IntRange(0, 720), default=24, show_default=True)
def rotate_secret(team: str, secret: str | None, overlap_hours: int) -> None:
    """Sign with another secret, and through the overlap with the one before, too."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.webhooks import SqlWebhooks

    made = None if secret else new_secret()

    async def run() -> None:
        async with opened(database_url()) as database:
            overlap = timedelta(hours=overlap_hours)
            await SqlWebhooks(database).rotate(team, secret or str(made), datetime.now(UTC), overlap)
        if made:
            click.echo(made)

    finish(run())


@webhooks.command("remove")
@click.argument("team")
def remove_webhook(team: str) -> None:
    """Tell a team nothing more."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.webhooks import SqlWebhooks

    async def run() -> None:
        async with opened(database_url()) as database:
            await SqlWebhooks(database).remove(team)

    finish(run())


@webhooks.command("list")
@click.option("--status", type=click.Choice(get_args(MessageStatus)))
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
def list_messages(status: MessageStatus | None, limit: int) -> None:
    """Messages, newest first; `--status dead` shows what was given up."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.outbox import SqlOutbox

    table = Table("id", "team", "review", "status", "attempts", "created", "due", "error")

    async def run() -> None:
        async with opened(database_url()) as database:
            for each in await SqlOutbox(database).listed(status, limit):
                times = (at.isoformat(timespec="seconds") for at in (each.created_at, each.due_at))
                said = (each.status, str(each.attempts), *times, each.error or "")
                table.add_row(each.id, each.team, each.review_id, *said)
        Console().print(table)

    finish(run())


@webhooks.command("replay")
@click.argument("ids", nargs=-1)
@click.option("--dead", is_flag=True, help="Everything that was given up.")
@click.option("--team", help="Only messages of this team.")
def replay(ids: tuple[str, ...], dead: bool, team: str | None) -> None:
    """Send messages again, with the ids that they had: receivers that saw one already know it by its id."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.outbox import SqlOutbox

    if bool(ids) == dead:
        raise click.UsageError("give either ids or --dead")

    async def run() -> None:
        async with opened(database_url()) as database:
            count = await SqlOutbox(database).replay(datetime.now(UTC), ids, team)
        click.echo(f"{count} messages are due again")

    finish(run())
