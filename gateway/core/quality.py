"""Whether the machine is right: the evidence of a period, by version of the task, made into one row each.

A row says recall, precision, prevalence, routing share and calibration error, each with an interval, beside what the
version's runs and their audits cost. What is counted comes from the ledger, what is true from people.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from gateway.core.estimates import Cell, Estimate, Judgement, Stratum, proportion, rates
from gateway.core.samples import Verdict


class Counted(Struct, frozen=True, kw_only=True):
    """Runs of a period that went the same way, from the ledger; `cost_nano` is what their model calls cost."""

    fingerprint: str
    stage: str | None
    status: str
    action: str | None
    positive: bool
    runs: int
    cost_nano: int

    @property
    def flagged(self) -> bool:
        """Held for people, or blocked."""
        return self.positive or self.status == "deferred" or self.action == "review"


class HeldItem(Struct, frozen=True, kw_only=True):
    """An item that people were asked about, with the runs of one version that it settles; `violation` None: not yet."""

    fingerprint: str
    stage: str | None
    runs: int
    score: float | None
    violation: bool | None


class Sampled(Struct, frozen=True, kw_only=True):
    """A run of the audit sample. `people_probability` is None where people were not asked."""

    fingerprint: str
    stage: str
    positive: bool
    score: float | None
    asks: Literal["llm", "people"]
    probability: float
    status: Literal["waiting", "judged", "dropped"]
    verdict: Verdict | None
    people_probability: float | None
    violation: bool | None


class Evidence(Struct, frozen=True, kw_only=True):
    """All that is known of a task's runs in a period. `audit_nano` and `llm_stages` are by fingerprint."""

    counted: Sequence[Counted]
    held: Sequence[HeldItem]
    sampled: Sequence[Sampled]
    audit_nano: Mapping[str, int]
    llm_stages: Mapping[str, frozenset[str]]


class QualityBook(Protocol):
    """Where the evidence is read."""

    async def evidence(self, task: str, start: datetime, end: datetime) -> Evidence:
        """Of the runs received in [start, end). Raises Unavailable."""


class VersionQuality(Struct, frozen=True, kw_only=True):
    """One row. `judged` items are what the rates rest on; `open` held items wait for people, `waiting` sampled runs for
    the auditor, and `dropped` ones were never looked at. `fingerprint` is None in the row of all versions.
    """

    fingerprint: str | None
    runs: int
    flagged: int
    judged: int
    open: int
    sampled: int
    waiting: int
    dropped: int
    recall: Estimate | None
    precision: Estimate | None
    prevalence: Estimate | None
    calibration_error: Estimate | None
    routing_share: Estimate | None
    cost_nano: int
    audit_nano: int


def report(found: Evidence) -> list[VersionQuality]:
    """A row for each version, those with most runs first, and one for all where there are several."""
    by_version: dict[str, int] = defaultdict(int)
    for each in found.counted:
        by_version[each.fingerprint] += each.runs
    versions = sorted(by_version, key=lambda name: (-by_version[name], name))
    rows = [_row(name, {name}, found) for name in versions]
    return [*rows, _row(None, set(versions), found)] if len(rows) > 1 else rows


def strata_of(found: Evidence, versions: Iterable[str]) -> list[Stratum]:
    """The stream of these versions: what each stage held, cleared or blocked is a stratum of its own."""
    versions = set(versions)
    sizes: dict[tuple[str, str | None, bool, bool], int] = defaultdict(int)
    for each in found.counted:
        if each.fingerprint in versions and each.status != "failed":
            sizes[each.fingerprint, each.stage, each.flagged, each.action == "review"] += each.runs
    return [
        Stratum(runs, flagged, _held(found, version, stage) if held else _drawn(found, version, stage, flagged))
        for (version, stage, flagged, held), runs in sizes.items()
    ]


def _held(found: Evidence, version: str, stage: str | None) -> list[Cell]:
    """Everything held is put to people: an item weighs as many runs as it settles."""
    return [
        Cell([
            Judgement(item.violation, float(item.runs), item.score)
            for item in found.held
            if (item.fingerprint, item.stage) == (version, stage) and item.violation is not None
        ])
    ]  # fmt: skip


def _drawn(found: Evidence, version: str, stage: str | None, flagged: bool) -> list[Cell]:
    """One cell for each verdict of the audit; a single one where people were asked at once."""
    some = [
        each
        for each in found.sampled
        if (each.fingerprint, each.stage, each.positive) == (version, stage, flagged) and each.status == "judged"
    ]
    cells = []
    for verdict in sorted({each.verdict for each in some}, key=str):
        mine = [each for each in some if each.verdict == verdict]
        judged = [
            Judgement(each.violation, 1 / (each.probability * each.people_probability), each.score)
            for each in mine
            if each.violation is not None and each.people_probability
        ]
        cells.append(Cell(judged, [1 / each.probability for each in mine]))
    return cells or [Cell([])]


def _row(fingerprint: str | None, versions: set[str], found: Evidence) -> VersionQuality:
    counted = [each for each in found.counted if each.fingerprint in versions]
    held = [each for each in found.held if each.fingerprint in versions]
    sampled = [each for each in found.sampled if each.fingerprint in versions]
    runs = sum(each.runs for each in counted)
    routed = sum(each.runs for each in counted if not _decided_cheaply(each, found))
    known = rates(strata_of(found, versions))
    return VersionQuality(
        fingerprint=fingerprint,
        runs=runs,
        flagged=sum(each.runs for each in counted if each.flagged),
        judged=sum(each.violation is not None for each in held) + sum(each.violation is not None for each in sampled),
        open=sum(each.violation is None for each in held),
        sampled=len(sampled),
        waiting=sum(each.status == "waiting" for each in sampled),
        dropped=sum(each.status == "dropped" for each in sampled),
        recall=known.recall,
        precision=known.precision,
        prevalence=known.prevalence,
        calibration_error=known.calibration_error,
        routing_share=proportion(routed, runs),
        cost_nano=sum(each.cost_nano for each in counted),
        audit_nano=sum(found.audit_nano.get(version, 0) for version in versions),
    )


def _decided_cheaply(each: Counted, found: Evidence) -> bool:
    return each.stage is not None and each.stage not in found.llm_stages.get(each.fingerprint, frozenset())
