"""The replicas of one model: which one is asked, how many requests may be under way, and when to try again.

Every try is a call of its own on the meter. A replica that fails is left alone for a moment and then tried with one
request, so that a dead server costs nothing and a healed one is found without a restart.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal, NamedTuple

from gateway.adapters.model_port import ASK, Ask, CallFault, NotConnected, Reply, Slow
from gateway.core.cascade import StageFailed
from gateway.core.meter import Meter, MeteredModel, WireCall

_FAILURES_TO_OPEN = 5
_FIRST_REST_S = 0.5
_LONGEST_REST_S = 2.0
_FIRST_PAUSE_S = 0.05


class Breaker:
    """Closed: all may pass. Open: nobody, until the rest is over; then one at a time, until one succeeds."""

    def __init__(self) -> None:
        self._failures = 0
        self._rests_until = 0.0
        self._probing = False

    def state(self, now: float) -> Literal["closed", "half_open", "open"]:
        """As an operator sees it: half open is the time in which one request may try."""
        if self._failures < _FAILURES_TO_OPEN:
            return "closed"
        return "open" if now < self._rests_until else "half_open"

    def admits(self, now: float) -> bool:
        """Whether a request may go to the replica."""
        return now >= self._rests_until and not self._probing

    def begins(self) -> None:
        """A request goes."""
        self._probing = self._failures >= _FAILURES_TO_OPEN

    def succeeded(self) -> None:
        """The server answered, be it with a refusal."""
        self._failures, self._rests_until, self._probing = 0, 0.0, False

    def failed(self, now: float, at_once: bool = False) -> None:
        """The server did not answer; `at_once` opens without waiting for more failures."""
        self._probing = False
        if now < self._rests_until:
            return  # Requests that were under way together count as one failure.
        self._failures = max(self._failures + 1, _FAILURES_TO_OPEN if at_once else 0)
        if (over := self._failures - _FAILURES_TO_OPEN) >= 0:
            self._rests_until = now + min(_FIRST_REST_S * 2 ** min(over, 8), _LONGEST_REST_S)

    def abandoned(self) -> None:
        """Nobody waits for the answer any more; it says nothing of the server."""
        self._probing = False


class Replica:
    """One URL (without a slash at its end), and how it is doing."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.breaker = Breaker()
        self.outstanding = 0
        self.served = 0
        self.barred: dict[str, str] = {}
        """Why it is taken out, by who says so."""


class Replicas:
    """All replicas of a model and its permits: one object per model and process, shared by all stages."""

    def __init__(self, urls: Sequence[str], max_concurrency: int) -> None:
        self._replicas = [Replica(url) for url in urls]
        self._permits = asyncio.Semaphore(max_concurrency)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the replicas are."""
        return tuple(replica.url for replica in self._replicas)

    def states(self, now: float) -> list[tuple[str, Literal["closed", "half_open", "open"], int, bool]]:
        """Of each replica: its URL, its breaker, how many requests it is at, and whether it is taken out."""
        return [(each.url, each.breaker.state(now), each.outstanding, bool(each.barred)) for each in self._replicas]

    def bar(self, url: str, why: str, said_by: str) -> None:
        """Take a replica out, because of what it serves; with an empty `why`, `said_by` holds nothing against it."""
        for replica in self._replicas:
            if replica.url == url:
                others = {who: said for who, said in replica.barred.items() if who != said_by}
                replica.barred = {**others, said_by: why} if why else others

    @property
    def barred(self) -> bool:
        """Whether any replica is taken out."""
        return any(replica.barred for replica in self._replicas)

    async def call(
        self, model: MeteredModel, send: Callable[[str], Awaitable[Reply]], input_tokens: int, output_tokens: int
    ) -> Reply:
        """Ask one replica, and others or again where that can help, within the bounds of the current `Ask`.

        `send` makes one request to a URL and raises CallFault. The token counts are the most that a try can use.
        Raises StageFailed with the reason of the last fault, and what the meter raises.
        """
        ask, question = ASK.get(), _Question(model, send, input_tokens, output_tokens)
        tried: set[Replica] = set()
        fault: CallFault = NotConnected("no replica is admitted")
        tries = 0
        while tries <= ask.retries:
            async with self._permit(ask):
                if (replica := self._pick(ask, tried)) is None:
                    break
                try:
                    return await self._hedged(ask, question, replica, tried)
                except CallFault as caught:
                    fault = caught
            gone = isinstance(fault, NotConnected)
            if not fault.again or ask.begun or (gone and replica in tried):
                break
            tried.add(replica)
            if not gone:
                tries += 1
                if tries <= ask.retries and not await self._pause(ask, fault, tried, tries):
                    break
        raise StageFailed(fault.reason, str(fault)) from fault

    async def _hedged(self, ask: Ask, question: "_Question", replica: Replica, tried: Collection[Replica]) -> Reply:
        """Ask a replica and, where it takes long, another one beside it: the first good answer counts.

        The other call is given up then, and stands in the ledger at its estimate: nobody knows what was counted of it.
        """
        if ask.hedge_after_s is None or ask.listener is not None:
            return await _try(ask, question, replica)
        asked = [asyncio.create_task(_try(ask, question, replica))]
        try:
            await asyncio.wait(asked, timeout=ask.hedge_after_s)
            other = self._pick(ask, {*tried, replica})
            if asked[0].done() or other is None or other in (replica, *tried) or self._permits.locked():
                return await asked[0]
            async with self._permit(ask):
                asked.append(asyncio.create_task(_try(ask, question, other)))
                return await _first_good(asked)
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    @asynccontextmanager
    async def _permit(self, ask: Ask) -> AsyncIterator[None]:
        """A place among the requests under way. Waiting for one ends with the deadline."""
        if self._permits.locked():
            try:
                async with asyncio.timeout_at(ask.deadline):
                    await self._permits.acquire()
            except TimeoutError:
                raise StageFailed("model_overloaded", "no permit came free before the deadline") from None
        else:
            await self._permits.acquire()
        try:
            yield
        finally:
            self._permits.release()

    def _pick(self, ask: Ask, tried: Collection[Replica]) -> Replica | None:
        """The replica with the least to do; one that has failed this very question comes last."""
        if ask.only is not None:
            return next((replica for replica in self._replicas if replica.url == ask.only), None)
        now = asyncio.get_running_loop().time()
        admitted = [replica for replica in self._replicas if not replica.barred and replica.breaker.admits(now)]
        return min(admitted, key=lambda r: (r in tried, r.outstanding, r.served), default=None)

    async def _pause(self, ask: Ask, fault: CallFault, tried: Collection[Replica], tries: int) -> bool:
        """Wait before the same replica is asked again. False where the deadline leaves no time for that."""
        loop = asyncio.get_running_loop()
        if (other := self._pick(ask, tried)) is not None and other not in tried:
            return loop.time() < ask.deadline
        pause_s = _FIRST_PAUSE_S * 2 ** (tries - 1) * random.uniform(0.5, 1.0)
        pause_s = max(pause_s, fault.retry_after_s or 0.0)
        if loop.time() + pause_s >= ask.deadline:
            return False
        await asyncio.sleep(pause_s)
        return True


class _Question(NamedTuple):
    """What is asked of a replica, whichever it is. The token counts are the most that an answer can use."""

    model: MeteredModel
    send: Callable[[str], Awaitable[Reply]]
    input_tokens: int
    output_tokens: int


async def _first_good(asked: Sequence["asyncio.Task[Reply]"]) -> Reply:
    """The first answer. Raises the first one's fault where all fail."""
    for each in asyncio.as_completed(asked):
        with suppress(Exception):
            return await each
    return asked[0].result()


async def _try(ask: Ask, question: _Question, replica: Replica) -> Reply:
    replica.outstanding += 1
    replica.served += 1
    replica.breaker.begins()
    try:
        async with _metered(ask.meter, question, replica.url) as wire:
            reply = await _timely(ask, question.send(replica.url))
            if reply.input_tokens is not None:
                wire.settle(reply.input_tokens, reply.output_tokens)
        replica.breaker.succeeded()
        return reply
    except CallFault as fault:
        _learn(replica.breaker, fault)
        raise
    except BaseException:
        replica.breaker.abandoned()
        raise
    finally:
        replica.outstanding -= 1


@asynccontextmanager
async def _metered(meter: Meter, question: _Question, url: str) -> AsyncIterator[WireCall]:
    """A metered call that a fault ends in the way the fault says."""
    async with meter.call(question.model, url, question.input_tokens, question.output_tokens) as wire:
        try:
            yield wire
        except CallFault as fault:
            if fault.counted:
                wire.lose(fault.lost, fault.status)
            else:
                wire.refuse(fault.status)
            raise
        except asyncio.CancelledError:
            wire.lose("cancelled")
            raise


async def _timely(ask: Ask, reply: Awaitable[Reply]) -> Reply:
    until = min(asyncio.get_running_loop().time() + ask.timeout_s, ask.deadline)
    try:
        async with asyncio.timeout_at(until):
            return await reply
    except TimeoutError as error:
        raise Slow(f"no answer within {ask.timeout_s:g} s") from error


def _learn(breaker: Breaker, fault: CallFault) -> None:
    if isinstance(fault, NotConnected):
        breaker.failed(asyncio.get_running_loop().time(), at_once=True)
    elif fault.counted and fault.again:
        breaker.failed(asyncio.get_running_loop().time())
    else:
        breaker.succeeded()
