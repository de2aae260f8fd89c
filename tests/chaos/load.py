"""Clients that ask without a pause, and what became of every request."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
from msgspec import Struct, field

CLIENTS = 16
GIVE_UP_S = 30.0


class Tally(Struct):
    """What was counted. Lost: no answer at all. Wrong: an action that the message must not get, or an odd answer."""

    answered: int = 0
    deferred: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    worst_s: float = 0.0
    runs: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """All requests that ended."""
        return self.answered + self.deferred + self.refused.total() + len(self.lost) + len(self.wrong)

    def hear(self, easy: bool, response: httpx.Response) -> None:
        """Sort an answer. An easy message is for the rules to deliver, any other one never may be delivered."""
        body: dict[str, Any] = response.json()
        if response.status_code != 200:
            code = body.get("code")
            if code in ("unavailable", "overloaded", "slow_body", "quota_exceeded"):
                self.refused[code] += 1
            else:
                self.wrong.append(f"{response.status_code} {code}")
            return
        said = body["metadata"]
        self.runs.add(said["run_id"])
        if said["action"] != ("deliver" if easy else "review"):
            self.wrong.append(f"{'easy' if easy else 'hard'}: {said['action']}, {said['reason']}")
        elif said["status"] == "deferred":
            self.deferred += 1
        else:
            self.answered += 1


class Load:
    """Asks gateways in turn. A third of the messages needs the model, and was never asked before: no cache helps."""

    def __init__(self, urls: Sequence[str], key: str) -> None:
        self.urls, self.tally = list(urls), Tally()
        self._headers = {"authorization": f"Bearer {key}"}
        self._numbers, self._name = count(), uuid4().hex
        self._stopped = False

    @asynccontextmanager
    async def running(self, clients: int = CLIENTS) -> AsyncIterator[Tally]:
        """Clients ask until the end of the block; then what is under way ends."""
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(headers=self._headers, timeout=GIVE_UP_S, limits=limits) as client:
            asking = [asyncio.create_task(self._ask(client)) for _ in range(clients)]
            try:
                yield self.tally
            finally:
                self._stopped = True
                await asyncio.gather(*asking)

    async def _ask(self, client: httpx.AsyncClient) -> None:
        while not self._stopped:
            number = next(self._numbers)
            easy = number % 3 != 0
            text = f"Thank you {number % 50}" if easy else f"Number {number} of {self._name} wants a model"
            began = time.monotonic()
            try:
                url = f"{self.urls[number % len(self.urls)]}/tasks/manners/invoke"
                self.tally.hear(easy, await client.post(url, json={"input": {"message": text}}))
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.tally.lost.append(type(error).__name__)
            self.tally.worst_s = max(self.tally.worst_s, time.monotonic() - began)
