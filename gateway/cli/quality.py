"""gateway quality: is the machine right, beside what it costs."""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.about_task import Asked, Said, about_task, shown
from gateway.cli.database import with_database
from gateway.core.prices import from_nano

if TYPE_CHECKING:
    from gateway.adapters.sql.database import Database
    from gateway.core.quality import Evidence, VersionQuality

_DAY = click.DateTime(["%Y-%m-%d"])
_SHORT = 10


@click.group()
def quality() -> None:
    """Is the machine right: recall, precision and drift, from the audit sample and what people decided."""


@quality.command()
@about_task
def report(asked: Asked) -> Said:
    """Recall, precision, prevalence, routing share and calibration error of each version, beside its cost."""
    from gateway.core.quality import report as rows_of

    async def run(database: "Database") -> "Evidence":
        from gateway.adapters.sql.quality import SqlQuality

        return await SqlQuality(database).evidence(asked.task, asked.start, asked.end)

    rows = rows_of(with_database(asked.settings, run))
    values = {"task": asked.task, "start": asked.start, "end": asked.end, "rows": rows}
    return Said(values, [_table(rows, f"{asked.title}, {asked.settings.currency}")])


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
