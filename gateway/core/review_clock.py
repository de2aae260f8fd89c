"""What time does to reviews: leases that lapse, deadlines that pass, texts whose retention ends."""

import asyncio
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable

log = structlog.get_logger()


class Timed(Protocol):
    """The store's side. Each takes a bounded number at once and says how many; any number of processes may call."""

    async def adopt(self, since: datetime | None) -> int:
        """Give an item to reviews that have none, since replicas with the old code wrote them. Raises Unavailable."""

    async def lapse(self, now: datetime) -> int:
        """Leases that have ended: their items return to the queue. Raises Unavailable."""

    async def expire(self, now: datetime) -> int:
        """Deadlines that have passed: what the task declared happens, once. Raises Unavailable."""

    async def forget_texts(self, before: datetime) -> int:
        """Texts and notes older than that of items that are settled. Raises Unavailable."""


class ReviewClock:
    """Does in each process what is due; what one process did, the others do not find."""

    def __init__(self, timed: Timed, clock: Clock, every_s: float, text_days: int) -> None:
        self._timed, self._clock, self._every_s = timed, clock, every_s
        self._retention = timedelta(days=text_days)
        self._adopted: datetime | None = None
        self._texts_due: datetime | None = None

    async def turn(self) -> None:
        """Do once all that is due. Raises Unavailable."""
        now = self._clock.now()
        done = {
            "adopted": await self._timed.adopt(self._adopted),
            "lapsed": await self._all(self._timed.lapse, now),
            "expired": await self._all(self._timed.expire, now),
            "texts_forgotten": await self._forget(now),
        }
        self._adopted = now - timedelta(hours=1)
        if any(done.values()):
            log.info("reviews_swept", **done)

    async def follow(self) -> None:
        """Take turns until cancelled; a store that is away is tried again at the next."""
        while True:
            try:
                await self.turn()
            except Unavailable:
                log.warning("reviews_not_swept")
            await asyncio.sleep(self._every_s)

    async def _forget(self, now: datetime) -> int:
        """Retention is counted in days, so once an hour is enough for a look at all that is old."""
        if self._texts_due is not None and now < self._texts_due:
            return 0
        forgotten = await self._timed.forget_texts(now - self._retention)
        self._texts_due = now + timedelta(hours=1)
        return forgotten

    async def _all(self, some: "Sweep", now: datetime) -> int:
        total = 0
        while done := await some(now):
            total += done
        return total


class Sweep(Protocol):
    """One of the two that may find more than fits in one transaction."""

    async def __call__(self, now: datetime) -> int:
        """How many were changed."""
