"""What every worker serves, told to the others through the store: two versions of a task at once are shown."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
from msgspec import Struct

from gateway.adapters.redis.line import Line
from gateway.adapters.redis.settings import RedisSettings
from gateway.core.errors import Unavailable

TELL_S = 1.0
_FORGET_S = 5.0


class _Told(Struct, frozen=True):
    at_s: int
    serves: dict[str, str]


_DECODER = msgspec.json.Decoder(_Told)


class Peers:
    """Tells the fingerprints that `serving` returns, once a second, and hears those of the others.

    `differing` are the tasks of which some other worker serves another version. A rollout shows up here, and is over
    when it is empty again. Times are the store's own, so that clocks of machines do not matter.
    """

    def __init__(self, settings: RedisSettings, serving: Callable[[], Mapping[str, str]]) -> None:
        self._line = Line(settings)
        self._serving, self._key, self._name = serving, f"{settings.prefix}serving", uuid.uuid4().hex
        self.differing: tuple[str, ...] = ()

    async def follow(self) -> None:
        """Tell and hear until cancelled; a store that is away leaves what was heard last."""
        while True:
            with suppress(Unavailable):
                await self.turn()
            await asyncio.sleep(TELL_S)

    async def turn(self) -> None:
        """Tell and hear once. Raises Unavailable."""
        ((seconds, _),) = await self._line.ask(("TIME",))
        mine, now_s = dict(self._serving()), int(seconds)
        told = msgspec.json.encode(_Told(now_s, mine))
        _, heard = await self._line.ask(("HSET", self._key, self._name, told), ("HGETALL", self._key))
        others = {name: _DECODER.decode(text) for name, text in zip(heard[::2], heard[1::2], strict=True)}
        if gone := [name for name, other in others.items() if now_s - other.at_s > _FORGET_S]:
            await self._line.ask(("HDEL", self._key, *gone))
        near = [other.serves for name, other in others.items() if name not in gone]
        self.differing = tuple(sorted(t for t, mark in mine.items() if any(o.get(t, mark) != mark for o in near)))

    async def aclose(self) -> None:
        """Stop being counted, and hang up."""
        with suppress(Unavailable):
            await self._line.ask(("HDEL", self._key, self._name))
        await self._line.close()
