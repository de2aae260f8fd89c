"""What is done when an hour or a day is over: GPU-hours are shared out, sums closed, what has expired forgotten."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Protocol

import structlog

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.gpu_hours import GpuShare
from gateway.core.prices import Tariff

log = structlog.get_logger()

EVERY_S = 60.0
# A model whose price per hour began long ago is caught up with over a few turns.
HOURS_AT_ONCE = 500


class Books(Protocol):
    """The sums of days."""

    async def close_days(self, now: datetime) -> Sequence[date]:
        """Close every day that can be: which ones. Doing it again changes nothing. Raises Unavailable."""


class GpuHours(Protocol):
    """Hours of GPUs that are paid for, used or not."""

    async def allocate(
        self, tariffs: Mapping[str, Tariff], now: datetime, most: int | None = None
    ) -> Sequence[GpuShare]:
        """Share out hours that are over: the new lines. Doing it again changes nothing. Raises Unavailable."""


class Expiring(Protocol):
    """Rows that are of no use after a while."""

    async def forget(self, now: datetime) -> int:
        """Remove what has expired: how many. Raises Unavailable."""


class Bookkeeper:
    """Keeps the books of all replicas; any number may do so at once. `tariffs` gives the prices of today's models."""

    def __init__(
        self,
        books: Books,
        hours: GpuHours,
        tariffs: Callable[[], Mapping[str, Tariff]],
        expiring: Expiring,
        clock: Clock,
    ) -> None:
        self._books, self._hours, self._tariffs = books, hours, tariffs
        self._expiring, self._clock = expiring, clock

    async def turn(self) -> None:
        """Do once what there is to do. Raises Unavailable."""
        now = self._clock.now()
        if days := await self._books.close_days(now):
            log.info("days_closed", first=days[0].isoformat(), last=days[-1].isoformat(), days=len(days))
        if lines := await self._hours.allocate(self._tariffs(), now, HOURS_AT_ONCE):
            log.info("gpu_hours_shared_out", first=lines[0].hour.isoformat(), hours=len({x.hour for x in lines}))
        await self._expiring.forget(now)

    async def follow(self) -> None:
        """Take turns until cancelled; a store that is away is tried again at the next."""
        while True:
            try:
                await self.turn()
            except Unavailable:
                log.warning("bookkeeping_postponed")
            except Exception:
                # Days that are never closed would be noticed only when a month is to be billed.
                log.exception("bookkeeping_broken")
            await asyncio.sleep(EVERY_S)
