"""Gateways under load while things die: clients that never stop asking, and a supervisor that starts what ended."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import httpx
from budgets import ask, message
from msgspec import Struct, field
from stack import Gateway

from gateway.local.child import ChildFailed
from prove.world import World

CLIENTS = 16
# Between two requests of a client: who is refused at once must not be all that the processor does.
PAUSE_S = 0.02
_STARTS = 5


class Fleet(Struct):
    """Gateways that serve, and those that come up in the place of dead ones meanwhile."""

    world: World
    up: list[Gateway]
    coming: list["asyncio.Task[Gateway]"] = field(default_factory=list)

    async def kill_one(self, dice: random.Random) -> None:
        """The whole process group at once; never the last one that serves."""
        while len(self.up) < 2:
            await asyncio.wait(self.coming, return_when=asyncio.FIRST_COMPLETED)
            self.arrive()
        victim = self.up.pop(dice.randrange(len(self.up)))
        # The server is a parent and its worker, in a group of their own.
        os.killpg(victim.child.process.pid, signal.SIGKILL)
        victim.child.process.wait()
        self.coming.append(asyncio.create_task(asyncio.to_thread(self._start)))

    def arrive(self) -> None:
        """Take in those that are ready."""
        ready = [each for each in self.coming if each.done()]
        self.coming = [each for each in self.coming if not each.done()]
        self.up += [each.result() for each in ready]

    async def whole(self) -> None:
        """Wait for all that are coming."""
        if self.coming:
            await asyncio.wait(self.coming)
        self.arrive()

    def _start(self) -> Gateway:
        """A gateway that finds no database ends, and whoever supervises it starts it again."""
        for _ in range(_STARTS - 1):
            with contextlib.suppress(ChildFailed):
                return self.world.gateway()
        return self.world.gateway()


class Load:
    """Each request is another message, for which the model is needed. `given` are the runs that were answered."""

    def __init__(self, fleet: Fleet, key: str, dice: random.Random) -> None:
        self.given: list[str] = []
        self._fleet, self._dice, self._numbers = fleet, dice, count()
        self._headers = {"authorization": f"Bearer {key}"}
        self._asking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Clients ask until the end of the block; then what is under way ends."""
        async with httpx.AsyncClient(headers=self._headers, timeout=30) as http:
            clients = [asyncio.create_task(self._client(http)) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                for each in clients:
                    each.cancel()
                await asyncio.gather(*clients, *self._asking, return_exceptions=True)

    def cancel_half(self) -> None:
        """Half of the requests that are under way are given up, as by callers that went away."""
        for each in self._dice.sample(list(self._asking), len(self._asking) // 2):
            each.cancel()

    async def _client(self, http: httpx.AsyncClient) -> None:
        while True:
            asking = asyncio.create_task(self._ask(http, self._dice.choice(self._fleet.up).url))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
            # A request that is given up does not end its client, which turns to the next.
            await asyncio.wait((asking,))
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, http: httpx.AsyncClient, url: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            response, metadata = await ask(http, message(next(self._numbers)), url)
            if response.status_code == 200:
                self.given.append(metadata["run_id"])
