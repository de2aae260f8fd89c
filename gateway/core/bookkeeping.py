"""What is done when a day is over: its sums are closed, and what has expired is forgotten."""

import asyncio
from collections.abc import Sequence
from datetime import date, datetime
from typing import Protocol

import structlog

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable

log = structlog.get_logger()

EVERY_S = 60.0


class Books(Protocol):
    """The sums of days."""

    async def close_days(self, now: datetime) -> Sequence[date]:
        """Close every day that can be: which ones. Doing it again changes nothing. Raises Unavailable."""


class Expiring(Protocol):
    """Rows that are of no use after a while."""

    async def forget(self, now: datetime) -> int:
        """Remove what has expired: how many. Raises Unavailable."""


class Bookkeeper:
    """Keeps the books of all replicas; any number may do so at once."""

    def __init__(self, books: Books, expiring: Expiring, clock: Clock) -> None:
        self._books, self._expiring, self._clock = books, expiring, clock

    async def turn(self) -> None:
        """Do once what there is to do. Raises Unavailable."""
        now = self._clock.now()
        if days := await self._books.close_days(now):
            log.info("days_closed", first=days[0].isoformat(), last=days[-1].isoformat(), days=len(days))
        await self._expiring.forget(now)

    async def follow(self) -> None:
        """Take turns until cancelled; a store that is away is tried again at the next."""
        while True:
            try:
                await self.turn()
            except Unavailable:
                log.warning("bookkeeping_postponed")
            await asyncio.sleep(EVERY_S)
