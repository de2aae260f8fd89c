"""gateway quality: is the machine right, beside what it costs."""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.database import with_database
from gateway.core.estimates import Estimate
from gateway.core.prices import from_nano
from gateway.core.reports import day_start

if TYPE_CHECKING:
    from gateway.adapters.sql.database import Database
    from gateway.core.quality import Evidence, VersionQuality

_DAY = click.DateTime(["%Y-%m-%d"])
_SHORT = 10


@click.group()
def quality() -> None:
    """Is the machine right: recall, precision and drift, from the audit sample and what people decided."""


@quality.command()
@click.option("--task", required=True)
@click.option("--from", "first", type=_DAY, required=True, help="First day, in the billing timezone.")
@click.option("--to", "after", type=_DAY, help="The day after the last. Default: tomorrow.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON instead of a table.")
def report(task: str, first: datetime, after: datetime | None, as_json: bool) -> None:
    """Recall, precision, prevalence, routing share and calibration error of each version, beside its cost."""
    import msgspec

    from gateway.core.quality import report as rows_of

    settings = process_settings.read(os.environ)
    start, end = period(settings, first, after)

    async def run(database: "Database") -> "Evidence":
        from gateway.adapters.sql.quality import SqlQuality

        return await SqlQuality(database).evidence(task, start, end)

    rows = rows_of(with_database(settings, run))
    if as_json:
        click.echo(msgspec.json.encode({"task": task, "start": start, "end": end, "rows": rows}).decode())
    else:
        Console().print(_table(rows, f"{task}, {first:%Y-%m-%d} to {end:%Y-%m-%d}, {settings.currency}"))


@quality.command()
@click.option("--task", required=True)
@click.option("--day", type=_DAY, help="The day (UTC) that is compared with the seven before. Default: yesterday.")
def drift(task: str, day: datetime | None) -> None:
    """How far scores and the routing share of a day moved from those of the week before. Status 1 where it alarms."""
    from gateway.core.drift import WINDOW, Drift, drifts_of

    start = (day or datetime.now(UTC) - WINDOW).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC)

    async def run(database: "Database") -> list[Drift]:
        from gateway.adapters.sql.drift import SqlDrift

        return await drifts_of(SqlDrift(database), task, start)

    found = with_database(process_settings.read(os.environ), run)
    table = Table("version", "what", "index (PSI)", "", title=f"{task}, {start:%Y-%m-%d} beside the week before")
    for each in found:
        table.add_row(each.fingerprint[:_SHORT], each.what, f"{each.index:.3f}", "drifted" if each.alarming else "")
    Console().print(table)
    sys.exit(1 if any(each.alarming for each in found) else 0)


def period(settings: process_settings.Settings, first: datetime, after: datetime | None) -> tuple[datetime, datetime]:
    """Whole days of the billing timezone, as instants; open at the end: until tomorrow begins."""
    tomorrow = datetime.now(UTC).astimezone(settings.zone).date() + timedelta(days=1)
    end = after.date() if after else tomorrow
    if end <= first.date():
        raise click.BadParameter("the interval ends before it begins", param_hint="--to")
    start, stop = day_start(first.date(), settings.zone), day_start(end, settings.zone)
    return start.astimezone(UTC), stop.astimezone(UTC)


def shown(found: Estimate | None) -> str:
    """`0.912 (0.884 to 0.935)`; a dash where nothing can be said."""
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})" if found else "-"


def _table(rows: "Sequence[VersionQuality]", title: str) -> Table:
    """One column a version: intervals are wide, and versions few."""
    table = Table("", *((row.fingerprint or "all")[:_SHORT] for row in rows), title=title)
    for name in ("recall", "precision", "prevalence", "routing_share", "calibration_error"):
        table.add_row(name.replace("_", " "), *(shown(getattr(row, name)) for row in rows))
    for name in ("runs", "flagged", "judged", "open", "sampled", "waiting", "dropped"):
        table.add_row(name, *(f"{getattr(row, name):,}" for row in rows))
    table.add_row("cost", *(from_nano(row.cost_nano) for row in rows))
    table.add_row("cost of audits", *(from_nano(row.audit_nano) for row in rows))
    return table
