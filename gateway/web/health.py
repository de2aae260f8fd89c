"""Is the process alive, and should it get traffic?"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.core.errors import Unavailable
from gateway.web.contract import contract
from gateway.web.doors import Check, Doors
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply, json_reply

log = structlog.get_logger()

AnyRequest = Request[Any, Any, Any]

_PROBE_S = 2.0
_REMEMBER_S = 1.0


class Alive(Struct, frozen=True):
    """The process answers."""

    status: str = "alive"


class Part(Struct, frozen=True):
    """`status` is ok, degraded or down."""

    status: str
    required: bool
    detail: str | None = None


class Readiness(Struct, frozen=True):
    """`status` is ready, degraded (still answering), draining or down. The last two are answered with 503."""

    status: str
    parts: dict[str, Part]


class HealthPages:
    """Public, so the probes behind it run at most once a second."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._parts: dict[str, Part] = {}
        self._until_s = float("-inf")
        self._probing = asyncio.Lock()

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        return (
            get("/health/live", opt=contract(answer=Alive))(self.live),
            get("/health/ready", opt=contract(answer=Readiness, errors=(Unavailable,)))(self.ready),
        )

    async def live(self, request: AnyRequest) -> Reply:
        """200 as long as the process answers at all."""
        return json_reply(Alive(), exchange_of(request, self._doors.clock).headers())

    async def ready(self, request: AnyRequest) -> Reply:
        """200 where the process wants traffic; 503 while it drains or a store that it cannot do without is down.

        Parts that are degraded are named either way.
        """
        readiness = Readiness(*await self._state())
        status = 503 if readiness.status in ("draining", "down") else 200
        return json_reply(readiness, exchange_of(request, self._doors.clock).headers(), status)

    async def _state(self) -> tuple[str, dict[str, Part]]:
        parts = await self._probed()
        if self._doors.draining():
            return "draining", parts
        if any(part.required and part.status == "down" for part in parts.values()):
            return "down", parts
        return ("ready" if all(part.status == "ok" for part in parts.values()) else "degraded"), parts

    async def _probed(self) -> dict[str, Part]:
        async with self._probing:
            if self._doors.clock.monotonic_s() >= self._until_s:
                checks = self._doors.checks
                parts = await asyncio.gather(*(_probe(name, check) for name, check in checks.items()))
                self._parts = dict(zip(checks, parts, strict=True))
                self._until_s = self._doors.clock.monotonic_s() + _REMEMBER_S
            return self._parts


async def _probe(name: str, check: Check) -> Part:
    try:
        async with asyncio.timeout(_PROBE_S):
            detail = await check.probe()
    except TimeoutError:
        return Part("down", check.required, f"no answer within {_PROBE_S:g} seconds")
    except Exception as error:
        # The page is public: what broke goes to the log, and here only that it did.
        log.warning("health_check_failed", part=name, error=type(error).__name__)
        return Part("down", check.required)
    return Part("ok" if detail is None else "degraded", check.required, detail)
