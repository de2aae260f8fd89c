"""gateway usage savings."""

import math
import os
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from gateway import settings as process_settings
from gateway.cli.database import with_database
from gateway.core.prices import NANO, Tariff, from_nano, to_nano
from gateway.core.registry import load_tariffs
from gateway.core.reports import CHARGES, UsageDay, total
from gateway.core.savings import Estimate, Traffic, suppressed

if TYPE_CHECKING:
    from gateway.adapters.sql.database import Database

_DAY = click.DateTime(["%Y-%m-%d"])
_HOUR_MS = 3_600_000

_METHOD = """\
Baseline: the model judges every message once, without a cache; calls that were made count at what they cost.
Prompts that were not sent: tokens counted by the model's own tokeniser on a random sample ({samples} of {suppressed}),
  each priced at its time; mean times number. Answers: mean of {outputs} observed calls ({mean:.2f} output tokens).
Interval: 95 %, normal, of the sampled prompts (drawn without replacement) and of the observed answers. What the model
  was asked is harder than what it was not, so its answers may be longer than the others would have been.
Rules and prefilter: {hours:.3f} hours of running at {compute} each, queueing included.
Human review: {held} held items at {review} each, on both sides: what the model alone would have held is not known here.
GPU-hours and corrections are those charged in the interval; idle GPU-hours are the platform's, and in no task."""


class Line(Struct, frozen=True):
    """A row of the table. `half_nano` is half the interval; quality is as the lab measured it."""

    name: str
    messages: int | None
    nano: float | None
    half_nano: float | None = 0.0
    quality: tuple[str, str] = ("", "")


@click.command()
@click.option("--task", required=True)
@click.option("--from", "start", type=_DAY, required=True, help="First day, in the billing timezone.")
@click.option("--to", "end", type=_DAY, required=True, help="The day after the last.")
@click.option(
    "--compute-per-hour", default="0", show_default=True, metavar="AMOUNT", help="Of a core that runs the cheap stages."
)
@click.option(
    "--review-each", default="0", show_default=True, metavar="AMOUNT", help="Of one item that a person judges."
)
def savings(task: str, start: datetime, end: datetime, compute_per_hour: str, review_each: str) -> None:
    """What a task would have cost had its model judged every message, beside what it did cost."""
    settings = process_settings.read(os.environ)
    rates = Rates(_amount(compute_per_hour, "--compute-per-hour"), _amount(review_each, "--review-each"))
    first, after = start.date(), end.date()
    traffic, rows = with_database(settings, lambda database: _read(database, settings, task, first, after))
    tariffs = load_tariffs(settings.home_path)
    if missing := {s.model for s in (*traffic.samples_cheap, *traffic.samples_cached)} - set(tariffs):
        raise click.ClickException(f"models.toml has no price of {', '.join(sorted(missing))}")
    told = Told(traffic, rows, rates, tariffs, _quality(settings.home_path / "tasks" / task / "metrics.json"))
    Console().print(_table(told.lines(), f"{task}, {first} to {after}, {settings.currency}"))
    click.echo(told.method())


class Rates(Struct, frozen=True):
    """Nano-dollars per hour of compute, and per item that a person judges."""

    compute_nano: int
    review_nano: int


class Told:
    """The lines of the table, from the ledger's sums and the estimates."""

    def __init__(
        self,
        traffic: Traffic,
        rows: Sequence[UsageDay],
        rates: Rates,
        tariffs: Mapping[str, Tariff],
        quality: Mapping[str, tuple[str, str]],
    ) -> None:
        self._traffic, self._rows, self._rates, self._quality = traffic, rows, rates, quality
        self._cheap = suppressed(traffic.cheap, traffic.samples_cheap, traffic.outputs, tariffs)
        self._cached = suppressed(traffic.cached, traffic.samples_cached, traffic.outputs, tariffs)

    def lines(self) -> list[Line]:
        """All-LLM, what did happen, and the difference, each with its parts."""
        traffic, review = self._traffic, self._traffic.held * self._rates.review_nano
        called = Estimate(traffic.called, 0, float(traffic.called_nano), 0.0)
        whole = called + self._cheap + self._cached
        everything = None if whole.nano is None else whole.nano + review
        spent = {kind: total(row for row in self._rows if row.kind == kind)["cost_nano"] for kind in self._kinds()}
        compute = round(traffic.compute_ms * self._rates.compute_nano / _HOUR_MS)
        did = sum(spent.values()) + compute + review
        return [
            Line("all-LLM", traffic.inferences, everything, whole.half_nano, self._quality.get("tuned", ("", ""))),
            Line("  calls that were made", called.inferences, called.nano),
            Line("  decided by cheap stages", self._cheap.inferences, self._cheap.nano, self._cheap.half_nano),
            Line("  answered by the cache", self._cached.inferences, self._cached.nano, self._cached.half_nano),
            Line("  human review", traffic.held, review),
            Line("as it was", traffic.inferences, did, 0.0, self._quality.get("cascade", ("", ""))),
            *(Line(f"  {kind}", None, nano) for kind, nano in spent.items()),
            Line("  rules and prefilter", None, compute),
            Line("  human review", traffic.held, review),
            Line("saved", None, None if everything is None else everything - did, whole.half_nano),
        ]

    def method(self) -> str:
        """Baseline, method and interval, in words."""
        traffic = self._traffic
        return _METHOD.format(
            samples=self._cheap.samples + self._cached.samples,
            suppressed=traffic.cheap + traffic.cached,
            outputs=traffic.outputs.calls,
            mean=traffic.outputs.mean,
            hours=traffic.compute_ms / _HOUR_MS,
            compute=from_nano(self._rates.compute_nano),
            held=traffic.held,
            review=from_nano(self._rates.review_nano),
        )

    def _kinds(self) -> list[str]:
        """Calls of the task's own inferences first, then audits and the like, then charges."""
        return sorted(
            {row.kind for row in self._rows} | {"invoke"}, key=lambda kind: (kind in CHARGES, kind != "invoke")
        )


async def _read(
    database: "Database", settings: process_settings.Settings, task: str, first: date, after: date
) -> tuple[Traffic, list[UsageDay]]:
    from gateway.adapters.sql.books import SqlBooks
    from gateway.adapters.sql.savings import SqlTraffic

    rows = await SqlBooks(database, settings.zone).days(first, after)
    return await SqlTraffic(database, settings.zone).of(task, first, after), [row for row in rows if row.task == task]


def _quality(file: Path) -> dict[str, tuple[str, str]]:
    """(AUC, recall) of each system of the lab's report; none where there is no report."""
    try:
        systems: Any = msgspec.json.decode(file.read_bytes())["systems"]
        return {name: (_value(each["auc"]), _value(each["operating"]["recall"])) for name, each in systems.items()}
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return {}


def _value(interval: Any) -> str:
    return f"{interval['value']:.3f}" if interval else ""


def _amount(text: str, option: str) -> int:
    try:
        return to_nano(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _table(lines: Sequence[Line], title: str) -> Table:
    table = Table("", title=title)
    for name in ("messages", "cost", "± (95 %)", "AUC", "recall"):
        table.add_column(name, justify="right")
    for line in lines:
        messages = f"{line.messages:,}" if line.messages is not None else ""
        table.add_row(line.name, messages, _shown(line.nano), _width(line), *line.quality)
    return table


def _shown(nano: float | None) -> str:
    return "not sampled" if nano is None else f"{nano / NANO:,.6f}"


def _width(line: Line) -> str:
    return "" if not line.half_nano else f"{math.ceil(line.half_nano / 1000) / 1_000_000:,.6f}"
