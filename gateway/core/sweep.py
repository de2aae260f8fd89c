"""The sweeper: what a process that died left open is closed by another, so that no reservation ever leaks."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.flights import patience_s
from gateway.core.inference import NOTHING_USED, Intent, Usage
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Reservations, Settlement
from gateway.core.problems import Problem

log = structlog.get_logger()

# So much longer than a run may its record take: the ledger is patient with a database that is away.
_RECORDING_S = 10.0


class Orphans(Protocol):
    """Intents whose process is gone."""

    async def orphans(self, older_than: datetime) -> Sequence[Intent]:
        """The oldest intents written before `older_than`, a bounded number. Raises Unavailable."""

    async def unsettle(self, intents: Sequence[Intent]) -> Sequence[Intent]:
        """Turn these into `unsettled` ledger rows at their estimate; returns those that this call turned."""

    async def outcomes(self, ids: Sequence[str]) -> Mapping[str, Usage | None]:
        """Of the model calls that the ledger knows: what was recorded, or None while there is only the intent."""


class OpenReservation(Protocol):
    """A reservation that nobody has settled yet."""

    @property
    def id(self) -> str:
        """The id of the model call that it was made for."""


class OpenReservations(Reservations, Protocol):
    """The fast counters, with a look at what is open."""

    async def open_reservations(self, older_than_s: float) -> Sequence[OpenReservation]:
        """The oldest reservations that are at least so old, a bounded number. Raises Unavailable."""


def outlived(tasks: Iterable[LoadedTask], orphan_after_s: float) -> list[Problem]:
    """Tasks whose calls would be swept while they are under way: their answers could not be recorded any more."""
    problems = []
    for task in tasks:
        if (needed_s := patience_s(task.declared) + _RECORDING_S) > orphan_after_s:
            said = f"takes up to {needed_s:.0f} s, and after {orphan_after_s:.0f} s its model calls count as lost"
            hint = "shorten `deadline_s`, or raise GATEWAY_ORPHAN_AFTER_S"
            problems.append(Problem(f"tasks/{task.name}/task.toml", "stage", said, hint))
    return problems


async def sweep_once(orphans: Orphans, reservations: OpenReservations, clock: Clock, orphan_after_s: float) -> int:
    """Close what is older than `orphan_after_s`: how many intents were orphans. Raises Unavailable."""
    closed = await _sweep_intents(orphans, reservations, clock.now() - timedelta(seconds=orphan_after_s))
    await _sweep_reservations(orphans, reservations, orphan_after_s)
    return closed


async def sweep_for_ever(
    orphans: Orphans, reservations: OpenReservations, clock: Clock, every_s: float, orphan_after_s: float
) -> None:
    """Sweep until cancelled; a store that is away is tried again at the next turn, and so is what should not happen:
    a sweeper that ends leaks every reservation from then on.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            await sweep_once(orphans, reservations, clock, orphan_after_s)
        except Unavailable:
            log.warning("sweep_postponed")
        except Exception:
            log.exception("sweep_broken")


async def _sweep_intents(orphans: Orphans, reservations: Reservations, older_than: datetime) -> int:
    found = await orphans.orphans(older_than)
    if not found:
        return 0
    closed = await orphans.unsettle(found)
    await reservations.settle([Settlement(intent.id, (), intent.estimate) for intent in closed])
    log.warning("orphans_unsettled", intents=len(closed), cost_nano=sum(i.estimate.cost_nano for i in closed))
    return len(closed)


async def _sweep_reservations(orphans: Orphans, reservations: OpenReservations, older_than_s: float) -> None:
    """Settle at what the ledger recorded. What it never heard of was not called; what still has an intent can wait."""
    ids = [reservation.id for reservation in await reservations.open_reservations(older_than_s)]
    if not ids:
        return
    known = await orphans.outcomes(ids)
    usages = {id: known.get(id, NOTHING_USED) for id in ids}
    settlements = [Settlement(id, (), usage) for id, usage in usages.items() if usage is not None]
    await reservations.settle(settlements)
    log.warning("reservations_released", reservations=len(settlements))
