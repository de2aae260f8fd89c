"""The courier: takes what is due from the outbox to the callers. At least once, with the same id each time."""

import asyncio
import random
from datetime import timedelta

import structlog

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.webhooks import Message, Outbox, Sender, Webhook, again_at

log = structlog.get_logger()

AT_ONCE = 20
CLAIM = timedelta(seconds=15)
"""Longer than any attempt: what a process that died had claimed is due again after it."""
_PAUSE_S = 1.0


class Courier:
    """Any number of processes may run one; a message is one's at a time."""

    def __init__(self, outbox: Outbox, sender: Sender, clock: Clock, first_pause_s: float) -> None:
        self._outbox, self._sender, self._clock = outbox, sender, clock
        self._first_pause_s = first_pause_s

    async def turn(self) -> int:
        """Send what is due: how many were tried. Raises Unavailable."""
        now = self._clock.now()
        claimed = await self._outbox.claim(now, now + CLAIM, AT_ONCE)
        await asyncio.gather(*(self._deliver(message, webhook) for message, webhook in claimed))
        return len(claimed)

    async def follow(self) -> None:
        """Take turns until cancelled."""
        while True:
            try:
                if await self.turn():
                    continue
            except Unavailable:
                log.warning("webhooks_postponed")
            await asyncio.sleep(_PAUSE_S)

    async def _deliver(self, message: Message, webhook: Webhook | None) -> None:
        if webhook is None:
            await self._outbox.failed(message, "the team has no webhook any more", None)
            return
        error = await self._sender.send(message, webhook)
        now = self._clock.now()
        if error is None:
            await self._outbox.delivered(message, now)
            return
        later = again_at(now, message.attempts, self._first_pause_s, random.random())
        await self._outbox.failed(message, error, later)
        log.warning("webhook_failed", team=message.team, id=message.id, error=error, dead=later is None)
