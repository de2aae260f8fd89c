"""gateway teams, gateway keys."""

import asyncio
import os
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import click
import msgspec
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.core.errors import GatewayError
from gateway.core.keys import SCOPES
from gateway.core.task import Name, Per, Resource


def database_url() -> str:
    return process_settings.read(os.environ).database


def team_name(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """The name of a team, as tasks may name it."""
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise click.BadParameter(
            "a team is named in lower case letters, digits, - and _, beginning with a letter"
        ) from None


@click.group()
def teams() -> None:
    """Teams: the tenants, who own tasks and keys."""


@teams.command("create")
@click.argument("name", callback=team_name)
def create_team(name: str) -> None:
    """Make a team."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.teams import SqlTeams
    from gateway.core.records import Team

    async def run() -> None:
        async with opened(database_url()) as database:
            await SqlTeams(database).add(Team(name, datetime.now(UTC)))

    finish(run())


@teams.command("list")
def list_teams() -> None:
    """All teams."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.teams import SqlTeams

    async def run() -> None:
        async with opened(database_url()) as database:
            for team in await SqlTeams(database).all():
                click.echo(team.name)

    finish(run())


@teams.command("limit")
@click.argument("name")
@click.option("--resource", type=click.Choice(get_args(Resource)), required=True)
@click.option("--per", type=click.Choice(get_args(Per)), help="The window; concurrency has none.")
@click.option("--limit", "amount", help='An integer; for cost a decimal such as "200.00".')
@click.option("--remove", is_flag=True, help="End this limit.")
def limit_team(name: str, resource: Resource, per: Per | None, amount: str | None, remove: bool) -> None:
    """Limit everything that a team calls. Replicas follow within two seconds; what was used stays used."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.teams import SqlTeams
    from gateway.core.records import TeamLimit
    from gateway.core.team_limits import team_limit

    if (amount is None) != remove:
        raise click.UsageError("give either --limit or --remove")

    async def run() -> None:
        async with opened(database_url()) as database:
            team = await SqlTeams(database).find(name)
            kept = [each for each in (team.limits if team else ()) if (each.resource, each.per) != (resource, per)]
            if amount is not None:
                limit = TeamLimit(resource, int(amount) if amount.isdecimal() and resource != "cost" else amount, per)
                team_limit(limit)
                kept.append(limit)
            for each in (await SqlTeams(database).set_limits(name, kept)).limits:
                click.echo(f"{name}: {each.limit} {each.resource}" + (f" per {each.per}" if each.per else " at once"))

    finish(run())


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.option("--team", required=True, callback=team_name)
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), default=["invoke"], show_default=True)
@click.option("--expires-days", type=click.IntRange(min=1))
def create_key(team: str, scopes: tuple[str, ...], expires_days: int | None) -> None:
    """Make a key. It is printed once and cannot be shown again."""
    from gateway.adapters.sql.access import new_key

    expires_at = datetime.now(UTC) + timedelta(days=expires_days) if expires_days else None

    async def run() -> None:
        click.echo(await new_key(database_url(), team, frozenset(scopes), expires_at))

    finish(run())


@keys.command("list")
@click.option("--team")
def list_keys(team: str | None) -> None:
    """All keys, or those of a team. Never their secrets."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.keys import SqlKeys

    table = Table("id", "team", "scopes", "created", "expires", "revoked")

    async def run() -> None:
        async with opened(database_url()) as database:
            for key in await SqlKeys(database).of_team(team):
                times = (key.created_at, key.expires_at, key.revoked_at)
                shown = (at.isoformat(timespec="seconds") if at else "" for at in times)
                table.add_row(key.id, key.team, " ".join(sorted(key.scopes)), *shown)
        Console().print(table)

    finish(run())


@keys.command("rotate")
@click.argument("key_id")
@click.option("--overlap-hours", type=click.IntRange(0, 720), default=24, show_default=True)
def rotate_key(key_id: str, overlap_hours: int) -> None:
    """Make a key in the place of another, which works on through the overlap. The new one is printed once."""
    from gateway.adapters.sql.access import rotated_key

    async def run() -> None:
        click.echo(await rotated_key(database_url(), key_id, timedelta(hours=overlap_hours)))

    finish(run())


@keys.command("revoke")
@click.argument("key_id")
def revoke_key(key_id: str) -> None:
    """Refuse a key from now on: every replica does so within two seconds."""
    from gateway.adapters.sql.access import opened
    from gateway.adapters.sql.keys import SqlKeys

    async def run() -> None:
        async with opened(database_url()) as database:
            await SqlKeys(database).revoke(key_id, datetime.now(UTC))

    finish(run())


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's work; an error that a caller may see is told without a traceback."""
    try:
        asyncio.run(work)
    except GatewayError as error:
        raise click.ClickException(error.detail) from error
