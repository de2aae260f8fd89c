"""Commands that say something of a task in a period: their options, the period, tables or JSON."""

import functools
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.core.estimates import Estimate
from gateway.core.reports import day_start

_DAY = click.DateTime(["%Y-%m-%d"])


class Asked(Struct, frozen=True):
    """A task and a half-open interval of whole days of the billing timezone, in UTC."""

    task: str
    start: datetime
    end: datetime
    settings: process_settings.Settings

    @property
    def title(self) -> str:
        """What tables are headed with."""
        first, after = (at.astimezone(self.settings.zone) for at in (self.start, self.end))
        return f"{self.task}, {first:%Y-%m-%d} to {after:%Y-%m-%d}"


class Said(Struct, frozen=True):
    """The answer, as values and as tables; `remarks` are printed below the tables."""

    values: Any
    tables: Sequence[Table]
    remarks: str = ""


def about_task(command: Callable[..., Said]) -> Callable[..., None]:
    """`--task`, `--from`, `--to` and `--json` for a command: it is given what was asked; what it says is printed.

    Options of its own, if any, are handed to it by name.
    """

    @click.option("--task", required=True)
    @click.option("--from", "first", type=_DAY, required=True, help="First day, in the billing timezone.")
    @click.option("--to", "after", type=_DAY, help="The day after the last. Default: tomorrow.")
    @click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
    @functools.wraps(command)
    def run(task: str, first: datetime, after: datetime | None, as_json: bool, **own: Any) -> None:
        settings = process_settings.read(os.environ)
        said = command(Asked(task, *_period(settings, first, after), settings), **own)
        if as_json:
            click.echo(msgspec.json.encode(said.values).decode())
            return
        for table in said.tables:
            Console().print(table)
        if said.remarks:
            click.echo(said.remarks)

    return run


def shown(found: Estimate | None) -> str:
    """`0.912 (0.884 to 0.935)`; a dash where nothing can be said."""
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})" if found else "-"


def _period(settings: process_settings.Settings, first: datetime, after: datetime | None) -> tuple[datetime, datetime]:
    """As instants; open at the end: until tomorrow begins."""
    tomorrow = datetime.now(UTC).astimezone(settings.zone).date() + timedelta(days=1)
    end = after.date() if after else tomorrow
    if end <= first.date():
        raise click.BadParameter("the interval ends before it begins", param_hint="--to")
    start, stop = day_start(first.date(), settings.zone), day_start(end, settings.zone)
    return start.astimezone(UTC), stop.astimezone(UTC)
