"""The sweeper: what a process that died left open is closed by another, so that no reservation ever leaks."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.inference import Intent
from gateway.core.meter import Reservations, Settlement

log = structlog.get_logger()


class Orphans(Protocol):
    """Intents whose process is gone."""

    async def orphans(self, older_than: datetime) -> Sequence[Intent]:
        """The oldest intents written before `older_than`, a bounded number. Raises Unavailable."""

    async def unsettle(self, intents: Sequence[Intent]) -> Sequence[Intent]:
        """Turn these into `unsettled` ledger rows at their estimate; returns those that this call turned."""


async def sweep_once(orphans: Orphans, reservations: Reservations, clock: Clock, orphan_after_s: float) -> int:
    """Close what is older than `orphan_after_s`: how many intents were orphans. Raises Unavailable."""
    found = await orphans.orphans(clock.now() - timedelta(seconds=orphan_after_s))
    if not found:
        return 0
    closed = await orphans.unsettle(found)
    await reservations.settle([Settlement(intent.id, (), intent.estimate) for intent in closed])
    log.warning("orphans_unsettled", intents=len(closed), cost_nano=sum(i.estimate.cost_nano for i in closed))
    return len(closed)


async def sweep_for_ever(
    orphans: Orphans, reservations: Reservations, clock: Clock, every_s: float, orphan_after_s: float
) -> None:
    """Sweep until cancelled; a store that is away is tried again at the next turn."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await sweep_once(orphans, reservations, clock, orphan_after_s)
        except Unavailable:
            log.warning("sweep_postponed")
