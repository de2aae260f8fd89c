"""Drift: whether scores, or the share that goes to the LLM, are spread otherwise than they were.

By the population stability index, Σ (p - q) ln (p / q) over bins: 0 for equal distributions; from 0.25 on they are
commonly called different (Siddiqi, Credit Risk Scorecards, 2006). It compares the last whole day (UTC) with the seven
before, so that hours of the day and days of the week are the same mix, and a version with itself alone: another version
scores otherwise by design. Scores of rare violations crowd near 0, so bins follow the log-odds. The share that goes to
the LLM has two bins only, and moves the index less: 0.05 is from 5 % to 11 %.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from math import log as ln
from typing import Protocol

import structlog
from msgspec import Struct

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.registry import Registry

log = structlog.get_logger()

EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
"""Scores of a bin lie below its edge; the last bin holds the rest."""
WINDOW, REFERENCE = timedelta(days=1), timedelta(days=7)
ROUTING = "routing share"
ALARM, ROUTING_ALARM = 0.25, 0.05
FEWEST = 1000
"""With fewer on either side chance alone moves the index too much: its mean is then (bins - 1)(1/n + 1/m)."""
_EVERY_S = 900.0


class Spread(Struct, frozen=True):
    """Counts by bin of one thing of a version: a stage's scores, or which way runs went."""

    fingerprint: str
    what: str
    counts: tuple[int, ...]


class Drift(Struct, frozen=True, kw_only=True):
    """How one thing moved in the window that began at `window_start`."""

    task: str
    fingerprint: str
    what: str
    window_start: datetime
    index: float

    @property
    def alarming(self) -> bool:
        """Whether somebody should look."""
        return self.index >= (ROUTING_ALARM if self.what == ROUTING else ALARM)


class QualityDrifted(Struct, frozen=True, kw_only=True, tag_field="event", tag="quality_drifted"):
    """What the operator is told."""

    task: str
    fingerprint: str
    what: str
    window_start: datetime
    index: float


class DriftBook(Protocol):
    """Where distributions are read, and what was told is remembered."""

    async def spreads(self, task: str, start: datetime, end: datetime) -> Sequence[Spread]:
        """Of the runs of [start, end). Raises Unavailable."""

    async def tell(self, drift: Drift, now: datetime) -> bool:
        """Whether nobody has told of it yet; from now on somebody has. Raises Unavailable."""


def stability_index(counts: Sequence[int], reference: Sequence[int]) -> float:
    """PSI of two distributions over the same bins; half a count in each keeps empty ones finite."""
    of, among = sum(counts) + len(counts) / 2, sum(reference) + len(reference) / 2
    shares = [((n + 0.5) / of, (m + 0.5) / among) for n, m in zip(counts, reference, strict=True)]
    return sum((p - q) * ln(p / q) for p, q in shares)


def drifts(task: str, window_start: datetime, window: Sequence[Spread], before: Sequence[Spread]) -> list[Drift]:
    """One for each thing that there is enough of on both sides, the largest first."""
    references: Mapping[tuple[str, str], Spread] = {(each.fingerprint, each.what): each for each in before}
    found = []
    for each in window:
        reference = references.get((each.fingerprint, each.what))
        if reference is None or min(sum(each.counts), sum(reference.counts)) < FEWEST:
            continue
        index = stability_index(each.counts, reference.counts)
        found.append(
            Drift(task=task, fingerprint=each.fingerprint, what=each.what, window_start=window_start, index=index)
        )
    return sorted(found, key=lambda drift: -drift.index)


async def drifts_of(book: DriftBook, task: str, window_start: datetime) -> list[Drift]:
    """The window beside its reference. Raises Unavailable."""
    window = await book.spreads(task, window_start, window_start + WINDOW)
    before = await book.spreads(task, window_start - REFERENCE, window_start)
    return drifts(task, window_start, window, before)


class DriftWatch:
    """Any number may run; each window is told of once. Tells the log and the listeners."""

    def __init__(
        self,
        book: DriftBook,
        registry: Callable[[], Registry],
        clock: Clock,
        listeners: Sequence[Callable[[QualityDrifted], None]] = (),
    ) -> None:
        self._book, self._registry, self._clock, self._listeners = book, registry, clock, listeners
        self._looked_at: datetime | None = None

    async def turn(self) -> None:
        """Look at the last whole day, unless this process has. Raises Unavailable."""
        now = self._clock.now()
        window_start = datetime.combine(now.astimezone(UTC).date(), time(), UTC) - WINDOW
        if self._looked_at == window_start:
            return
        for name in self._registry().tasks:
            for drift in await drifts_of(self._book, name, window_start):
                if drift.alarming and await self._book.tell(drift, now):
                    self._say(drift)
        self._looked_at = window_start

    async def follow(self) -> None:
        """Take turns until cancelled; a store that is away is asked again at the next."""
        while True:
            try:
                await self.turn()
            except Unavailable:
                log.warning("drift_not_looked_at")
            await asyncio.sleep(_EVERY_S)

    def _say(self, drift: Drift) -> None:
        event = QualityDrifted(
            task=drift.task,
            fingerprint=drift.fingerprint,
            what=drift.what,
            window_start=drift.window_start,
            index=round(drift.index, 4),
        )
        log.warning("quality_drifted", task=event.task, fingerprint=event.fingerprint, what=event.what,
                    window_start=event.window_start.isoformat(), index=event.index)  # fmt: skip
        for tell in self._listeners:
            tell(event)
