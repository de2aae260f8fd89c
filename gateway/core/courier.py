"""The courier: takes what is due from the outbox to the callers. At least once, with the same id each time."""

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import timedelta

import structlog

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.webhooks import Message, Outbox, Sender, Webhook, again_at

log = structlog.get_logger()

AT_ONCE, A_TEAM = 48, 8
"""How many messages are on their way at a time from one process; about how many of them may be one team's, so that a
receiver that hangs delays nobody else's messages.
"""
CLAIM = timedelta(seconds=15)
"""Longer than any attempt: what a process that died had claimed is due again after it."""
_PAUSE_S, _GATHER_S = 1.0, 0.02

Under = dict["asyncio.Task[None]", str]
Claimed = Sequence[tuple[Message, Webhook | None]]


class Courier:
    """Any number of processes may run one; a message is one's at a time."""

    def __init__(self, outbox: Outbox, sender: Sender, clock: Clock, first_pause_s: float) -> None:
        self._outbox, self._sender, self._clock = outbox, sender, clock
        self._first_pause_s = first_pause_s

    async def turn(self) -> int:
        """Send some of what is due, and wait until that was tried: how many. Raises Unavailable."""
        claimed = await self._claim(A_TEAM)
        await asyncio.gather(*(self._deliver(message, webhook) for message, webhook in claimed))
        return len(claimed)

    async def follow(self) -> None:
        """Send whatever is due until cancelled."""
        under_way: Under = {}
        async with asyncio.TaskGroup() as group:
            while True:
                claimed = await self._more(under_way)
                for message, webhook in claimed:
                    under_way[group.create_task(self._deliver(message, webhook))] = message.team
                if len(claimed) < A_TEAM:
                    await _some_done(under_way)
                under_way = {task: team for task, team in under_way.items() if not task.done()}

    async def _more(self, under_way: Under) -> Claimed:
        """As much as there is room for, of teams that have not many messages on their way."""
        counts = Counter(under_way.values())
        room = min(A_TEAM, AT_ONCE - counts.total())
        try:
            return await self._claim(room, [team for team, count in counts.items() if count >= A_TEAM]) if room else ()
        except Unavailable:
            log.warning("webhooks_postponed")
            return ()

    async def _claim(self, limit: int, without: Collection[str] = ()) -> Claimed:
        now = self._clock.now()
        return await self._outbox.claim(now, now + CLAIM, limit, without)

    async def _deliver(self, message: Message, webhook: Webhook | None) -> None:
        try:
            await self._try(message, webhook)
        except Unavailable:
            # It is due again when its claim ends.
            log.warning("webhooks_postponed")
        except Exception:
            # One message that nobody foresaw may not end the sending of all others.
            log.exception("webhook_not_tried", team=message.team, id=message.id)

    async def _try(self, message: Message, webhook: Webhook | None) -> None:
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


async def _some_done(under_way: Under) -> None:
    """A while, or less: what ends at almost the same time makes room at once."""
    if under_way:
        await asyncio.wait(under_way, timeout=_PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(_GATHER_S)
    else:
        await asyncio.sleep(_PAUSE_S)
