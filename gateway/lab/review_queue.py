"""The queue of reviews, simulated: how soon violations are found by rank, against first in, first out.

Both orders work the same stream at the same capacity. Scores are calibrated by construction: an item with score p is
a violation with probability p. Most held items are none, as in production, and arrivals have rush hours in which
reviewers fall behind, for a queue that is never long needs no order.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from statistics import mean, quantiles

from msgspec import Struct

from gateway.core.reviews import rank_of, risk_of

_T0 = datetime(2026, 1, 1, tzinfo=UTC)
_HOUR_S = 3600.0
_SEVERITIES, _SEVERITY_SHARES = (1, 2, 3), (0.3, 0.5, 0.2)


class World(Struct, frozen=True, kw_only=True):
    """What is simulated. `load`: arrivals over capacity, on the average of a day; for `rush_hours` of each eight the
    arrivals are `rush` times those of the other hours. Scores are Beta distributed with mean `prevalence`.
    """

    items: int = 20_000
    reviewers: int = 5
    seconds_each: float = 30.0
    load: float = 0.95
    rush: float = 3.0
    rush_hours: int = 2
    prevalence: float = 0.25
    concentration: float = 1.5
    sla_minutes: float = 60.0


class Waits(Struct, frozen=True):
    """Minutes from hold to decision."""

    violations_mean: float
    violations_p95: float
    grave_mean: float
    clean_mean: float
    longest: float


class Compared(Struct, frozen=True):
    """Both orders on the same stream; `gain` is the share of the mean time to catch a violation that rank saves."""

    by_rank: Waits
    first_in_first_out: Waits
    gain: float


class _Item(Struct, frozen=True):
    at_s: float
    score: float
    severity: int
    violation: bool


def simulate(world: World, seed: int) -> Compared:
    """One stream, worked twice."""
    stream = _stream(world, random.Random(seed))
    sla = timedelta(minutes=world.sla_minutes)

    def rank(item: _Item) -> float:
        at = _T0 + timedelta(seconds=item.at_s)
        return (rank_of(at, at + sla, risk_of(item.severity, item.score)) - _T0).total_seconds()

    ranked, queued = _work(world, stream, rank), _work(world, stream, lambda item: item.at_s)
    return Compared(ranked, queued, 1 - ranked.violations_mean / queued.violations_mean)


def _stream(world: World, dice: random.Random) -> Sequence[_Item]:
    capacity = world.reviewers / world.seconds_each
    calm = 8 * world.load * capacity / (8 - world.rush_hours + world.rush * world.rush_hours)
    a, b = world.prevalence * world.concentration, (1 - world.prevalence) * world.concentration
    at_s, stream = 0.0, []
    for _ in range(world.items):
        in_rush = at_s / _HOUR_S % 8 < world.rush_hours
        at_s += dice.expovariate(calm * (world.rush if in_rush else 1.0))
        score = dice.betavariate(a, b)
        (severity,) = dice.choices(_SEVERITIES, _SEVERITY_SHARES)
        stream.append(_Item(at_s, score, severity, dice.random() < score))
    return stream


def _work(world: World, stream: Sequence[_Item], rank: Callable[[_Item], float]) -> Waits:
    """Each reviewer who is free takes the first of what has arrived."""
    free = [0.0] * world.reviewers
    waiting: list[tuple[float, int]] = []
    waits: list[float] = [0.0] * len(stream)
    arrived = 0
    while arrived < len(stream) or waiting:
        now_s = heapq.heappop(free)
        if not waiting and arrived < len(stream):
            now_s = max(now_s, stream[arrived].at_s)
        while arrived < len(stream) and stream[arrived].at_s <= now_s:
            heapq.heappush(waiting, (rank(stream[arrived]), arrived))
            arrived += 1
        _, number = heapq.heappop(waiting)
        heapq.heappush(free, now_s + world.seconds_each)
        waits[number] = (now_s + world.seconds_each - stream[number].at_s) / 60
    return _waits(stream, waits)


def _waits(stream: Sequence[_Item], waits: Sequence[float]) -> Waits:
    pairs = list(zip(stream, waits, strict=True))
    violations = [wait for item, wait in pairs if item.violation]
    return Waits(
        violations_mean=mean(violations),
        violations_p95=quantiles(violations, n=20)[-1],
        grave_mean=mean(wait for item, wait in pairs if item.violation and item.severity == max(_SEVERITIES)),
        clean_mean=mean(wait for item, wait in pairs if not item.violation),
        longest=max(waits),
    )
