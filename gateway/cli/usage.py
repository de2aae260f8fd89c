"""gateway usage."""

import os
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.database import with_books, with_database
from gateway.cli.savings import savings
from gateway.core.errors import Conflict
from gateway.core.gpu_hours import GpuShare
from gateway.core.prices import from_nano
from gateway.core.registry import load_tariffs
from gateway.core.reports import SUMS, Line, Part, UsageDay, focus_rows, grouped, total

if TYPE_CHECKING:
    from gateway.adapters.sql.books import ClosedMonth, SqlBooks
    from gateway.adapters.sql.database import Database

_DAY = click.DateTime(["%Y-%m-%d"])
_MONTH = click.DateTime(["%Y-%m"])


@click.group()
def usage() -> None:
    """What was spent: reports, exports, closed months."""


@usage.command()
@click.option("--by", default="team,task,model", show_default=True, help=f"Any of {', '.join(get_args(Part))}.")
@click.option(
    "--from", "start", type=_DAY, help="First day, in the billing timezone. Default: the first of this month."
)
@click.option("--to", "end", type=_DAY, help="The day after the last. Default: tomorrow.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write FOCUS rows as CSV.")
@click.option("--parquet", type=click.Path(dir_okay=False, path_type=Path), help="Write FOCUS rows as Parquet.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines as JSON instead of a table.")
def report(
    by: str, start: datetime | None, end: datetime | None, csv_file: Path | None, parquet: Path | None, as_json: bool
) -> None:
    """Tokens and cost of an interval, to the last nano-unit."""
    parts = _parts(by)
    settings = process_settings.read(os.environ)
    today = datetime.now(UTC).astimezone(settings.zone).date()
    first = start.date() if start else today.replace(day=1)
    after = end.date() if end else today + timedelta(days=1)

    async def run(books: "SqlBooks") -> list[UsageDay]:
        await books.close_days(datetime.now(UTC))
        return await books.days(first, after)

    rows = with_books(settings, run)
    if csv_file:
        csv_file.write_bytes(_focus_csv(rows, settings))
    if parquet:
        from gateway.adapters.exports import write_parquet

        write_parquet(focus_rows(rows, settings.currency, settings.zone), _focus_columns(settings), parquet)
    lines = grouped(rows, parts)
    if as_json:
        click.echo(_json(lines, parts, total(rows)))
    else:
        Console().print(_table(lines, parts, total(rows), f"{first} to {after}, {settings.currency}"))


@usage.command()
@click.option("--month", type=_MONTH, required=True, help="Such as 2026-10.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the export here too.")
def close(month: datetime, csv_file: Path | None) -> None:
    """Close a month: store its export with its sha256. Closed again, it is the same for ever."""
    settings = process_settings.read(os.environ)
    tariffs = load_tariffs(settings.home_path)

    async def run(database: "Database") -> "ClosedMonth":
        from gateway.adapters.sql.books import SqlBooks
        from gateway.adapters.sql.gpu_hours import SqlGpuHours

        now, hours = datetime.now(UTC), SqlGpuHours(database, settings.zone)
        await hours.allocate(tariffs, now)
        if left := await hours.open_hours(tariffs, month.date()):
            raise Conflict(f"GPU-hours from {left[0].start:%Y-%m-%d %H:%M} UTC on cannot be shared out yet.")
        books = SqlBooks(database, settings.zone)
        return await books.close_month(month.date(), now, lambda rows: _focus_csv(rows, settings))

    closed = with_database(settings, run)
    if csv_file:
        csv_file.write_bytes(closed.content)
    click.echo(f"{closed.month:%Y-%m} closed {closed.closed_at.isoformat(timespec='seconds')} {closed.sha256}")


usage.add_command(savings)


@usage.command()
def allocate() -> None:
    """Share out the GPU-hours that are over among those who used them. Done again, it writes nothing.

    A gateway that runs does this by itself every minute.
    """
    settings = process_settings.read(os.environ)
    tariffs = load_tariffs(settings.home_path)

    async def run(database: "Database") -> Sequence[GpuShare]:
        from gateway.adapters.sql.gpu_hours import SqlGpuHours

        return await SqlGpuHours(database, settings.zone).allocate(tariffs, datetime.now(UTC))

    lines = with_database(settings, run)
    Console().print(_shares_table(lines, settings.currency))


def _shares_table(lines: Sequence[GpuShare], currency: str) -> Table:
    """Per model: the hours, their bill, and how it was split. The bill is the sum of the other two."""
    table = Table("model", "hours", "bill", "used", "idle", title=f"GPU-hours shared out, {currency}")
    for model in sorted({line.model for line in lines}):
        own = [line for line in lines if line.model == model]
        bills = {line.hour: line.bill_nano for line in own}
        idle = sum(line.cost_nano for line in own if not line.task)
        used = sum(line.cost_nano for line in own if line.task)
        table.add_row(model, f"{len(bills):,}", *map(from_nano, (sum(bills.values()), used, idle)))
    return table


def _parts(by: str) -> tuple[Part, ...]:
    parts = tuple(part.strip() for part in by.split(","))
    if unknown := [part for part in parts if part not in get_args(Part)]:
        raise click.BadParameter(f"unknown: {', '.join(unknown)}", param_hint="--by")
    return parts  # type: ignore[return-value]


def _focus_columns(settings: process_settings.Settings) -> list[str]:
    """A report without rows has its columns too."""
    nothing = UsageDay(day=date(2026, 1, 1), payer_team="", caller_team="", owner_team="", task="", kind="")
    return list(focus_rows([nothing], settings.currency, settings.zone)[0])


def _focus_csv(rows: Any, settings: process_settings.Settings) -> bytes:
    from gateway.adapters.exports import to_csv

    return to_csv(focus_rows(rows, settings.currency, settings.zone), _focus_columns(settings))


def _shown(name: str, value: int) -> str:
    return from_nano(value) if name.endswith("_nano") else f"{value:,}"


def _table(lines: list[Line], parts: tuple[Part, ...], sums: Any, title: str) -> Table:
    table = Table(*parts, title=title, show_footer=True)
    for name in SUMS:
        table.add_column(name.removesuffix("_nano"), _shown(name, sums[name]), justify="right")
    table.columns[0].footer = "total"
    for line in lines:
        table.add_row(*(each or "-" for each in line.names), *(_shown(name, line.sums[name]) for name in SUMS))
    return table


def _json(lines: list[Line], parts: tuple[Part, ...], sums: Any) -> str:
    import msgspec

    def plain(values: Any) -> dict[str, Any]:
        return {
            name.removesuffix("_nano"): from_nano(values[name]) if name.endswith("_nano") else values[name]
            for name in SUMS
        }

    said = [{**dict(zip(parts, line.names, strict=True)), **plain(line.sums)} for line in lines]
    return msgspec.json.encode({"lines": said, "total": plain(sums)}).decode()
