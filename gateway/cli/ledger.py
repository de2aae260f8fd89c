"""gateway ledger: what must agree, and corrections of prices."""

import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.database import with_database
from gateway.core.corrections import Adjustment, Correction, HourCorrection
from gateway.core.prices import from_nano
from gateway.core.registry import load_tariffs
from gateway.core.reports import CHARGES, total

if TYPE_CHECKING:
    from gateway.adapters.sql.books import Totals
    from gateway.adapters.sql.corrections import SqlCorrections
    from gateway.adapters.sql.database import Database

_DAY = click.DateTime(["%Y-%m-%d"])
_COUNTERS = {"input": "tgi_request_input_length_sum", "output": "tgi_request_generated_tokens_sum"}


class Finding(Struct, frozen=True):
    """One thing that must hold."""

    says: str
    left: str
    right: str
    holds: bool


class Counted(Struct, frozen=True):
    """Tokens that a model server says it has counted."""

    input_tokens: int
    output_tokens: int


@click.group()
def ledger() -> None:
    """The ledger."""


@ledger.command()
@click.option("--model-metrics", multiple=True, metavar="URL", help="A model server's /metrics; repeat for replicas.")
@click.option("--since-input", default=0, help="What their input counters stood at when the ledger began.")
@click.option("--since-output", default=0, help="The same for output.")
def verify(model_metrics: tuple[str, ...], since_input: int, since_output: int) -> None:
    """Prove that every sum agrees with every other. Status 1 where one does not."""
    settings = process_settings.read(os.environ)

    async def run(database: "Database") -> "tuple[Totals, list[Finding]]":
        from gateway.adapters.sql.books import SqlBooks

        books = SqlBooks(database, settings.zone)
        await books.close_days(datetime.now(UTC))
        totals = await books.totals()
        return totals, _findings(totals) + await _charges(database, settings)

    # The servers are asked first: what they count meanwhile is not in the ledger yet, and would look lost.
    counted = [_counted(url) for url in model_metrics]
    totals, findings = with_database(settings, run)
    if counted:
        inputs = sum(each.input_tokens for each in counted) - since_input
        outputs = sum(each.output_tokens for each in counted) - since_output
        findings += bounds(totals, Counted(inputs, outputs))
    table = Table("what must hold", "is", "and", "", title="gateway ledger verify")
    for each in findings:
        table.add_row(each.says, each.left, each.right, "holds" if each.holds else "[bold red]DIFFERS[/]")
    Console().print(table)
    if not all(each.holds for each in findings):
        sys.exit(1)


@ledger.command()
@click.option("--model", required=True, help="The model's name in models.toml.")
@click.option("--from", "start", type=_DAY, required=True, help="First day, in the billing timezone.")
@click.option("--to", "end", type=_DAY, required=True, help="The day after the last.")
@click.option("--per-million-input", metavar="AMOUNT", help='What should have held, such as "0.05".')
@click.option("--per-million-output", metavar="AMOUNT", help="The same for output.")
@click.option("--per-hour", metavar="AMOUNT", help="Instead: what an hour of all its GPUs should have cost.")
@click.option("--reason", required=True, help="For the books; it is kept with every row.")
@click.option("--write", is_flag=True, help="Write the adjustments. Without it they are only shown.")
def adjust(
    model: str,
    start: datetime,
    end: datetime,
    per_million_input: str | None,
    per_million_output: str | None,
    per_hour: str | None,
    reason: str,
    write: bool,
) -> None:
    """Correct the price of days that are over: the difference is charged today, and nothing written is changed."""
    settings = process_settings.read(os.environ)
    about = {"model": model, "start": start.date(), "end": end.date(), "reason": reason}
    correction = _correction(about, per_million_input, per_million_output, per_hour)
    tariffs = load_tariffs(settings.home_path) if per_hour is not None else {}

    async def run(database: "Database") -> Sequence[Adjustment]:
        from gateway.adapters.sql.books import SqlBooks
        from gateway.adapters.sql.gpu_hours import SqlGpuHours

        corrections, now = _sql_corrections(database, settings), datetime.now(UTC)
        await SqlBooks(database, settings.zone).close_days(now)
        # An hour that is shared out later would come at the old price, and uncorrected.
        await SqlGpuHours(database, settings.zone).allocate(tariffs, now)
        return await (corrections.write(correction, now) if write else corrections.find(correction, now))

    adjustments = with_database(settings, run)
    Console().print(_adjustments_table(adjustments, f"{model}, {settings.currency}"))
    done = "written" if write else "to write; nothing is written yet: --write"
    click.echo(f"{len(adjustments)} adjustment(s) {done}")


def _correction(
    about: dict[str, Any], per_input: str | None, per_output: str | None, per_hour: str | None
) -> Correction | HourCorrection:
    if per_hour is not None and per_input is None and per_output is None:
        return HourCorrection(**about, per_hour=per_hour)
    if per_hour is None and per_input is not None and per_output is not None:
        return Correction(**about, input_per_million=per_input, output_per_million=per_output)
    raise click.UsageError("Give --per-million-input and --per-million-output, or --per-hour.")


def _sql_corrections(database: "Database", settings: process_settings.Settings) -> "SqlCorrections":
    import uuid_utils

    from gateway.adapters.sql.corrections import SqlCorrections

    return SqlCorrections(database, settings.zone, lambda: str(uuid_utils.uuid7()))


def _adjustments_table(adjustments: Sequence[Adjustment], title: str) -> Table:
    table = Table("corrects", "payer", "caller", "owner", "task", title=title, show_footer=True)
    table.add_column("difference", from_nano(sum(each.cost_nano for each in adjustments)), justify="right")
    for each in adjustments:
        who = (each.payer_team, each.caller_team, each.owner_team, each.task)
        table.add_row(each.corrects.isoformat(), *who, from_nano(each.cost_nano))
    return table


async def _charges(database: "Database", settings: process_settings.Settings) -> list[Finding]:
    from gateway.adapters.sql.gpu_hours import SqlGpuHours

    differing = await _sql_corrections(database, settings).differing()
    off = await SqlGpuHours(database, settings.zone).off()
    return [
        _equal("corrected days that differ from their price", len(differing), 0),
        _equal("GPU-hours that do not sum to their bill", off.bills, 0),
        _equal("GPU-hours that differ from their calls", off.tokens, 0),
    ]


def _findings(totals: "Totals") -> list[Finding]:
    calls, attempts, inferences = totals.calls.cost_nano, totals.attempts.cost_nano, totals.inferences.cost_nano
    calls_only = [row for row in totals.reported if row.kind not in CHARGES]
    return [
        _equal("cost of calls = cost of attempts", calls, attempts),
        _equal("cost of attempts = cost of inferences", attempts, inferences),
        _equal(
            "cost of calls, and of those removed = cost in the reports, without other charges",
            calls + totals.removed.cost_nano,
            total(calls_only)["cost_nano"],
        ),
        _equal("attempts that differ from their calls", totals.attempts_off, 0),
        _equal("inferences that differ from their attempts", totals.inferences_off, 0),
        _equal("closed days that differ from their rows", len(totals.days_off), 0),
        _equal("closed months that differ from their days, or from their hash", len(totals.months_off), 0),
    ]


def bounds(totals: "Totals", counted: Counted) -> list[Finding]:
    """Settled ≤ what the model server counted ≤ settled + unsettled + what is under way, for each direction."""
    found = []
    for direction, at_server in (("input", counted.input_tokens), ("output", counted.output_tokens)):
        name = f"{direction}_tokens"
        all_calls: int = getattr(totals.calls + totals.removed, name)
        settled: int = all_calls - getattr(totals.unsettled + totals.removed_unsettled, name)
        at_most: int = all_calls + getattr(totals.intents, name)
        found += [
            Finding(
                f"settled {direction} ≤ the server's count", f"{settled:,}", f"{at_server:,}", settled <= at_server
            ),
            Finding(
                f"the server's count ≤ settled + unsettled + under way, {direction}",
                f"{at_server:,}",
                f"{at_most:,}",
                at_server <= at_most,
            ),
        ]
    return found


def _equal(says: str, left: int, right: int) -> Finding:
    return Finding(says, f"{left:,}", f"{right:,}", left == right)


def _counted(url: str) -> Counted:
    """The counters of TGI's /metrics."""
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{url!r} is no http(s) URL", param_hint="--model-metrics")
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
    except (urllib.error.URLError, OSError) as error:
        raise click.ClickException(f"{url} does not answer") from error
    values = {}
    for direction, name in _COUNTERS.items():
        if (found := re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)) is None:
            raise click.ClickException(f"{url} has no {name}")
        values[direction] = int(float(found[1]))
    return Counted(values["input"], values["output"])
