"""Sessions and exposure counters of the reviewer's page, over a line of their own.

Keys (behind the prefix): `s:` a session's key id, `x:` the items of one severity that a reviewer revealed on a day.
"""

from collections.abc import Mapping
from datetime import date, timedelta

from gateway.adapters.redis.line import Line
from gateway.adapters.redis.settings import RedisSettings

SEVERITIES = (1, 2, 3)
# Longer than any day is anywhere.
_KEPT_S = 2 * 24 * 3600


class RedisDesk:
    """Core's Sessions and Exposure."""

    def __init__(self, settings: RedisSettings) -> None:
        self._prefix = settings.prefix
        self._line = Line(settings)

    async def open(self, name: str, key_id: str, lasting: timedelta) -> None:
        """Raises Unavailable."""
        await self._line.ask(("SET", f"{self._prefix}s:{name}", key_id, "EX", int(lasting.total_seconds())))

    async def key_id(self, name: str) -> str | None:
        """Raises Unavailable."""
        (found,) = await self._line.ask(("GET", f"{self._prefix}s:{name}"))
        return found.decode() if found is not None else None

    async def close(self, name: str) -> None:
        """Raises Unavailable."""
        await self._line.ask(("DEL", f"{self._prefix}s:{name}"))

    async def add(self, key_id: str, day: date, severity: int, review_id: str) -> None:
        """Raises Unavailable."""
        key = self._exposed(key_id, day, severity)
        await self._line.ask(("SADD", key, review_id), ("EXPIRE", key, _KEPT_S))

    async def of(self, key_id: str, day: date) -> Mapping[int, int]:
        """Raises Unavailable."""
        counts = await self._line.ask(*(("SCARD", self._exposed(key_id, day, each)) for each in SEVERITIES))
        return dict(zip(SEVERITIES, counts, strict=True))

    async def aclose(self) -> None:
        """Hang up."""
        await self._line.close()

    def _exposed(self, key_id: str, day: date, severity: int) -> str:
        return f"{self._prefix}x:{key_id}:{day.isoformat()}:{severity}"
