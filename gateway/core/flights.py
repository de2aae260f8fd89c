"""Identical requests that are in flight at several processes share one run.

Whoever looks an answer up and finds none claims the run of it, in that same round trip. The others look again until the
answer is kept, at most as long as a run may take. A claim is short and renewed while the run lasts: of a process that
died the others know within two seconds, and the first of them runs itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Literal, Protocol

from msgspec import Struct

from gateway.core.cascade import Outcome
from gateway.core.errors import Unavailable
from gateway.core.inference import CacheStatus
from gateway.core.meter import Settlement
from gateway.core.task import ChainStage, Task

LEASE_S = 2.0
_RENEW_S = 0.6
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.05
_CHEAP_S = 1.0

Claim = Literal["mine", "other", "none"]


class Looked(Struct, frozen=True):
    """What the store says of an answer: the bytes that are kept, or whose the run is that will give it."""

    kept: bytes | None = None
    claim: Claim = "none"


class Flown(Struct, frozen=True):
    """What came of a run here, or `shared` from elsewhere; `settlements` and the claim are still to be closed."""

    outcome: Outcome
    settlements: Sequence[Settlement] = ()
    claim: Claim = "none"
    cache: CacheStatus = "miss"


class Lookout(Protocol):
    """The store, as those see it who wait for another process."""

    async def look(self, invocation_id: str, cache_key: str) -> Looked:
        """The answer, or a claim of its run: `mine` where nobody else has it. Raises Unavailable."""


def patience_s(task: Task) -> float:
    """The longest that a run of the task takes: the deadlines of its chains, and a second for all the rest."""
    return _CHEAP_S + sum(stage.deadline_s for stage in task.stage if isinstance(stage, ChainStage))


async def answered_elsewhere(store: Lookout, invocation_id: str, cache_key: str, patience_s: float) -> Looked:
    """Wait for the answer of another process. Without one: `mine` where that process gave up, else `none`."""
    loop = asyncio.get_running_loop()
    pause_s, end_s = _FIRST_PAUSE_S, loop.time() + patience_s
    while loop.time() < end_s:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        try:
            looked = await store.look(invocation_id, cache_key)
        except Unavailable:
            break
        if looked.claim != "other":
            return looked
    return Looked()


class Renewal:
    """Renews a claim while the block runs. A run that is soon over costs no more than a timer."""

    def __init__(self, renew: Callable[[], Awaitable[None]]) -> None:
        self._renew = renew
        self._sending: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._wait()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_RENEW_S, self._due)

    def _due(self) -> None:
        self._sending = asyncio.create_task(self._send())
        self._wait()

    async def _send(self) -> None:
        with suppress(Unavailable):
            await self._renew()
