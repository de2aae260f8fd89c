"""gateway ledger."""

import os
import re
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.usage import with_books
from gateway.core.reports import total

if TYPE_CHECKING:
    from gateway.adapters.sql.books import SqlBooks, Totals

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

    async def run(books: "SqlBooks") -> "tuple[Totals, int]":
        await books.close_days(datetime.now(UTC))
        totals = await books.totals()
        today = datetime.now(UTC).astimezone(settings.zone).date()
        reported = total(
            row for row in await books.days(datetime.min.date(), today + timedelta(days=2)) if row.kind != "adjustment"
        )
        return totals, reported["cost_nano"]

    # The servers are asked first: what they count meanwhile is not in the ledger yet, and would look lost.
    counted = [_counted(url) for url in model_metrics]
    totals, reported_nano = with_books(settings, run)
    findings = _findings(totals, reported_nano)
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


def _findings(totals: "Totals", reported_nano: int) -> list[Finding]:
    calls, attempts, inferences = totals.calls.cost_nano, totals.attempts.cost_nano, totals.inferences.cost_nano
    return [
        _equal("cost of calls = cost of attempts", calls, attempts),
        _equal("cost of attempts = cost of inferences", attempts, inferences),
        _equal("cost of calls = cost in the reports", calls, reported_nano),
        _equal("attempts that differ from their calls", totals.attempts_off, 0),
        _equal("inferences that differ from their attempts", totals.inferences_off, 0),
        _equal("closed days that differ from their rows", len(totals.days_off), 0),
    ]


def bounds(totals: "Totals", counted: Counted) -> list[Finding]:
    """Settled ≤ what the model server counted ≤ settled + unsettled + what is under way, for each direction."""
    found = []
    for direction, at_server in (("input", counted.input_tokens), ("output", counted.output_tokens)):
        at_most: int = getattr(totals.calls, f"{direction}_tokens")
        settled: int = at_most - getattr(totals.unsettled, f"{direction}_tokens")
        found += [
            Finding(
                f"settled {direction} ≤ the server's count", f"{settled:,}", f"{at_server:,}", settled <= at_server
            ),
            Finding(
                f"the server's count ≤ settled + unsettled {direction}",
                f"{at_server:,}",
                f"{at_most:,}",
                at_server <= at_most or totals.intents > 0,
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
