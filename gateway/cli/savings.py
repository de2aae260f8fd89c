"""gateway usage savings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct, structs
from rich.table import Table

from gateway.cli.about_task import Asked, Said, about_task
from gateway.cli.database import with_database
from gateway.core.prices import NANO, Tariff, from_nano, to_nano
from gateway.core.registry import load_tariffs
from gateway.core.reports import CHARGES, UsageDay, total
from gateway.core.savings import Estimate, Traffic, suppressed

if TYPE_CHECKING:
    from gateway.adapters.sql.database import Database
    from gateway.core.quality import VersionQuality

_HOUR_MS = 3_600_000

_METHOD = """\
Baseline: the model judges every message once, without a cache; calls that were made count at what they cost.
Prompts that were not sent: tokens counted by the model's own tokeniser on a random sample ({samples} of {suppressed}),
  each priced at its time; mean times number. Answers: mean of {outputs} observed calls ({mean:.2f} output tokens).
Interval: 95 %, normal, of the sampled prompts (drawn without replacement) and of the observed answers. What the model
  was asked is harder than what it was not, so its answers may be longer than the others would have been.
Rules and prefilter: {hours:.3f} hours of running at {compute} each, queueing included.
Human review: {held} held items at {review} each, on both sides: what the model alone would have held is not known here.
Quality: AUC and recall as the lab measured them, on its own sets; live as people found it in this interval, in what was
  held and in the audit sample.
GPU-hours and corrections are those charged in the interval; idle GPU-hours are the platform's, and in no task."""


class Measured(Struct, frozen=True):
    """Quality of a way to judge: as the lab measured it on its frozen sets, or as people found it in the interval."""

    auc: float | None = None
    recall: float | None = None
    live_recall: float | None = None
    live_precision: float | None = None


class Line(Struct, frozen=True):
    """A row of the table, `of` another one or on its own. `half_nano` is half the interval."""

    name: str
    messages: int | None
    nano: float | None
    half_nano: float | None = 0.0
    of: str = ""
    quality: Measured = Measured()


@click.command()
@click.option(
    "--compute-per-hour", default="0", show_default=True, metavar="AMOUNT", help="Of a core that runs the cheap stages."
)
@click.option(
    "--review-each", default="0", show_default=True, metavar="AMOUNT", help="Of one item that a person judges."
)
@about_task
def savings(asked: Asked, compute_per_hour: str, review_each: str) -> Said:
    """What a task would have cost had its model judged every message, beside what it did cost."""
    home = asked.settings.home_path
    rates = Rates(_amount(compute_per_hour, "--compute-per-hour"), _amount(review_each, "--review-each"))
    traffic, rows, live = with_database(asked.settings, lambda database: _read(database, asked))
    tariffs = load_tariffs(home)
    if missing := {s.model for s in (*traffic.samples_cheap, *traffic.samples_cached)} - set(tariffs):
        raise click.ClickException(f"models.toml has no price of {', '.join(sorted(missing))}")
    told = Told(traffic, rows, rates, tariffs, _quality(home / "tasks" / asked.task / "metrics.json", live))
    lines, currency = told.lines(), asked.settings.currency
    values = {
        "task": asked.task, "start": asked.start, "end": asked.end, "currency": currency,
        "lines": [_plain(line) for line in lines], "method": told.method(),
    }  # fmt: skip
    return Said(values, [_table(lines, f"{asked.title}, {currency}")], told.method())


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
        quality: Mapping[str, Measured],
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
            Line("all-LLM", traffic.inferences, everything, whole.half_nano, quality=self._of("tuned")),
            _part("all-LLM", "calls that were made", called),
            _part("all-LLM", "decided by cheap stages", self._cheap),
            _part("all-LLM", "answered by the cache", self._cached),
            Line("human review", traffic.held, review, of="all-LLM"),
            Line("as it was", traffic.inferences, did, quality=self._of("cascade")),
            *(Line(kind, None, nano, of="as it was") for kind, nano in spent.items()),
            Line("rules and prefilter", None, compute, of="as it was"),
            Line("human review", traffic.held, review, of="as it was"),
            Line("saved", None, None if everything is None else everything - did, whole.half_nano),
        ]

    def _of(self, system: str) -> Measured:
        return self._quality.get(system, Measured())

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


async def _read(database: "Database", asked: Asked) -> "tuple[Traffic, list[UsageDay], VersionQuality | None]":
    """Traffic, the sums of its days, and what people found of all versions together."""
    from gateway.adapters.sql.books import SqlBooks
    from gateway.adapters.sql.quality import SqlQuality
    from gateway.adapters.sql.savings import SqlTraffic
    from gateway.core.quality import report

    zone = asked.settings.zone
    first, after = asked.start.astimezone(zone).date(), asked.end.astimezone(zone).date()
    rows = [row for row in await SqlBooks(database, zone).days(first, after) if row.task == asked.task]
    versions = report(await SqlQuality(database).evidence(asked.task, asked.start, asked.end))
    return await SqlTraffic(database, zone).of(asked.task, first, after), rows, versions[-1] if versions else None


def _quality(file: Path, live: "VersionQuality | None") -> dict[str, Measured]:
    """Of each system of the lab's report, if there is one; people have only seen what the cascade did."""
    try:
        systems: Any = msgspec.json.decode(file.read_bytes())["systems"]
        found = {name: Measured(_value(of["auc"]), _value(of["operating"]["recall"])) for name, of in systems.items()}
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        found = {}
    if live is not None:
        recall, precision = (each.value if each else None for each in (live.recall, live.precision))
        seen = found.get("cascade", Measured())
        found["cascade"] = structs.replace(seen, live_recall=recall, live_precision=precision)
    return found


def _value(interval: Any) -> float | None:
    return float(interval["value"]) if interval else None


def _amount(text: str, option: str) -> int:
    try:
        return to_nano(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _part(of: str, name: str, estimate: Estimate) -> Line:
    return Line(name, estimate.inferences, estimate.nano, estimate.half_nano, of)


def _table(lines: Sequence[Line], title: str) -> Table:
    table = Table("", title=title)
    for name in ("messages", "cost", "± (95 %)", "AUC", "recall", "live recall", "live precision"):
        table.add_column(name, justify="right")
    for line in lines:
        messages = f"{line.messages:,}" if line.messages is not None else ""
        quality = ("" if each is None else f"{each:.3f}" for each in structs.astuple(line.quality))
        table.add_row(f"  {line.name}" if line.of else line.name, messages, _shown(line.nano), _width(line), *quality)
    return table


def _plain(line: Line) -> dict[str, Any]:
    """Estimates are rounded to the nano-unit; None where the sample is too small to say."""
    cost, half = (None if each is None else from_nano(round(each)) for each in (line.nano, line.half_nano))
    quality = {name: each for name, each in structs.asdict(line.quality).items() if each is not None}
    return {"name": line.name, "of": line.of, "messages": line.messages, "cost": cost, "plus_minus": half, **quality}


def _shown(nano: float | None) -> str:
    return "not sampled" if nano is None else f"{nano / NANO:,.6f}"


def _width(line: Line) -> str:
    return "" if not line.half_nano else f"{math.ceil(line.half_nano / 1000) / 1_000_000:,.6f}"
