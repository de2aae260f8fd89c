"""What is looked up rather than counted: the state of this process every second, that of the deployment at a scrape."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import structlog
from msgspec import Struct

from gateway import __version__
from gateway.adapters.metrics import MOST_SERIES, Metrics, host_of
from gateway.core.loaded import LoadedTask
from gateway.core.quotas import Charge, Limit, Standing, for_spending
from gateway.core.review_ports import Depth
from gateway.core.telemetry import Reading, ReplicaState

log = structlog.get_logger()

Look = Callable[[], Awaitable[Sequence[Reading]]]
Across = str

_EVERY_S = 1.0
_LOOK_S = 2.0
_PROBE_S = 1.5
_REMEMBER_S = 1.0
_CHARGES_AT_ONCE = 100
_BREAKER = {"closed": 0.0, "half_open": 1.0, "open": 2.0}
_PAGE_BYTES = 4096


class ProcessState(Struct, frozen=True):
    """What one worker process has under way, and what it knows of its stores."""

    in_flight: int
    ledger_waiting: int
    store_up: bool
    quotas_degraded: bool
    replicas: Sequence[ReplicaState]


class Vitals:
    """The state of this process as gauges, once a second."""

    def __init__(self, metrics: Metrics, state: Callable[[], ProcessState]) -> None:
        self._metrics, self._state = metrics, state

    async def follow(self) -> None:
        """Look until cancelled. How late a look comes is how long the event loop was busy with something else."""
        while True:
            due_s = time.monotonic() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self.look(time.monotonic() - due_s)

    def look(self, lag_s: float) -> None:
        """Set the gauges."""
        state = self._state()
        for across, reading in _vitals(state, lag_s):
            self._metrics.set(reading, across)


class Readings:
    """Everything that is looked up at a scrape. Whoever asks within a second gets what the last one got.

    A look that fails or takes long is left out, so that the others are seen on the worst of days.
    """

    def __init__(self, looks: Mapping[str, Look]) -> None:
        self._looks = looks
        self._looking = asyncio.Lock()
        self._until_s = 0.0
        self._last: Sequence[Reading] = ()

    async def __call__(self) -> Sequence[Reading]:
        """The readings."""
        async with self._looking:
            if time.monotonic() >= self._until_s:
                found = await asyncio.gather(*(_looked(name, look) for name, look in self._looks.items()))
                self._last = [reading for each in found for reading in each]
                self._until_s = time.monotonic() + _REMEMBER_S
            return self._last


async def _looked(name: str, look: Look) -> Sequence[Reading]:
    try:
        async with asyncio.timeout(_LOOK_S):
            return await look()
    except Exception as error:
        log.warning("metrics_incomplete", part=name, error=type(error).__name__)
        return ()


def versions(tasks: Sequence[LoadedTask], differing: Collection[str], config_problems: int) -> Sequence[Reading]:
    """What is served here, and whether others serve something else under the same name."""
    served = [((task.name, task.fingerprint), 1.0) for task in tasks]
    apart = [((task.name,), float(task.name in differing)) for task in tasks]
    return (
        Reading("build_info", "The version of the gateway.", ("version",), [((__version__,), 1.0)]),
        Reading("task_info", "The version of each task.", ("task", "fingerprint"), served),
        Reading("task_differs", "Whether another worker serves another version of a task.", ("task",), apart),
        Reading("config_problems", "Problems of the last edit, which is not served.", (), [((), config_problems)]),
    )


async def parts(probes: Mapping[str, Callable[[], Awaitable[str | None]]]) -> Sequence[Reading]:
    """How the parts of the deployment are, by the same probes as /health/ready."""
    levels = await asyncio.gather(*map(_level, probes.values()))
    values = [((name,), level) for name, level in zip(probes, levels, strict=True)]
    return (Reading("part_state", "State of a part: 0 ok, 1 degraded, 2 down.", ("part",), values),)


def review_queue(depths: Sequence[Depth], now: datetime) -> Sequence[Reading]:
    """What waits for people."""
    open = [((each.task,), float(each.open + each.leased + each.escalated)) for each in depths]
    ages = [((each.task,), (now - each.oldest_at).total_seconds()) for each in depths if each.oldest_at is not None]
    late = [((each.task,), float(each.at_risk)) for each in depths]
    return (
        Reading("reviews_open", "Items that wait for a decision.", ("task",), open),
        Reading("review_oldest_age_seconds", "Age of the oldest of them.", ("task",), ages),
        Reading("reviews_at_risk", "Those that are overdue, or will be soon.", ("task",), late),
    )


def budget_charges(
    tasks: Iterable[str],
    teams: Sequence[str],
    limits_of: Callable[[str, str], Sequence[Limit]],
    now: datetime,
    zone: ZoneInfo,
) -> list[Charge]:
    """The counters of all budgets but those of single keys, with nothing to take; at most MOST_SERIES of them."""
    found: dict[str, Charge] = {}
    for task in tasks:
        for team in teams:
            limits = [limit for limit in limits_of(task, team) if "key" not in limit.scope]
            names = {"task": task, "caller_team": team, "key": ""}
            found.update((charge.key, charge) for charge in for_spending(limits, names, now, zone))
            if len(found) >= MOST_SERIES:
                return list(found.values())[:MOST_SERIES]
    return list(found.values())


async def budgets(
    charges: Sequence[Charge], look: Callable[[Sequence[Charge]], Awaitable[Sequence[Standing]]]
) -> Sequence[Reading]:
    """How much is left of each budget. Raises Unavailable."""
    standings: list[Standing] = []
    for start in range(0, len(charges), _CHARGES_AT_ONCE):
        standings += await look(charges[start : start + _CHARGES_AT_ONCE])
    labels = ("scope", "resource", "per")
    limits, left = [], []
    for standing in standings:
        charge = standing.charge
        key = (charge.scope, charge.resource, charge.per or "")
        unit = 1e-9 if charge.resource == "cost" else 1.0
        limits.append((key, standing.limit * unit))
        left.append((key, standing.remaining * unit))
    return (
        Reading("budget_limit", "Budgets: tokens, or the currency.", labels, limits),
        Reading("budget_remaining", "What is left of them in their current window.", labels, left),
    )


async def _level(probe: Callable[[], Awaitable[str | None]]) -> float:
    try:
        async with asyncio.timeout(_PROBE_S):
            return 0.0 if await probe() is None else 1.0
    except Exception:
        return 2.0


def _vitals(state: ProcessState, lag_s: float) -> Iterator[tuple[Across, Reading]]:
    seen = [((each.model, host_of(each.url)), each) for each in state.replicas]
    replica = ("model", "replica")
    yield "livesum", _one("in_flight", "Invocations that are being answered.", state.in_flight)
    yield "livesum", _one("ledger_waiting", "Items that wait for the ledger's next commit.", state.ledger_waiting)
    yield "livemin", _one("store_up", "Whether the store answered last time.", state.store_up)
    yield "livemax", _one("quotas_degraded", "Whether quotas come from process memory.", state.quotas_degraded)
    yield "livemax", _one("loop_lag_seconds", "How long the event loop was busy at a stretch.", max(0.0, lag_s))
    yield "livemax", _one("worker_resident_bytes", "Memory of the largest worker.", _resident_bytes())
    breakers = [(key, _BREAKER[each.breaker]) for key, each in seen]
    yield "livemax", Reading("breaker_state", "0 closed, 1 half open, 2 open.", replica, breakers)
    barred = [(key, float(each.barred)) for key, each in seen]
    yield "livemax", Reading("replica_barred", "Whether a replica is taken out for what it serves.", replica, barred)
    busy = [(key, float(each.outstanding)) for key, each in seen]
    yield "livesum", Reading("model_outstanding", "Requests that a replica is at.", replica, busy)


def _one(name: str, help: str, value: float) -> Reading:
    return Reading(name, help, (), [((), float(value))])


def _resident_bytes() -> int:
    """0 where the platform has no /proc."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
