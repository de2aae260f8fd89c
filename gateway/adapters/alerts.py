"""Events to the operator's own URL, as JSON: one POST each, tried a few times, never in the way of a request."""

import asyncio
from collections.abc import Sequence

import httpx
import msgspec
import structlog

from gateway.core.drift import QualityDrifted
from gateway.core.thresholds import NearLimit

log = structlog.get_logger()

Event = NearLimit | QualityDrifted

_WAITING = 1000
_TIMEOUT_S = 5.0
_PAUSES_S = (1.0, 5.0, 30.0)


class Alerts:
    """Sends what it is told, in order. `url` may hold a secret, so it is never logged."""

    def __init__(self, url: str, pauses_s: Sequence[float] = _PAUSES_S) -> None:
        self._url, self._pauses_s = url, pauses_s
        self._waiting: asyncio.Queue[Event] = asyncio.Queue(_WAITING)

    def tell(self, event: Event) -> None:
        """Returns at once. What finds no room is dropped; the log has it."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            log.error("alert_dropped", alert=event.__struct_config__.tag)

    async def follow(self) -> None:
        """Send until cancelled."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            while True:
                event = await self._waiting.get()
                if (fault := await self._delivered(client, msgspec.json.encode(event))) is not None:
                    log.error("alert_not_delivered", alert=event.__struct_config__.tag, reason=fault)

    async def _delivered(self, client: httpx.AsyncClient, body: bytes) -> str | None:
        """None where the receiver took it (2xx), else what went wrong at last."""
        fault = ""
        for pause_s in (0.0, *self._pauses_s):
            await asyncio.sleep(pause_s)
            try:
                answer = await client.post(self._url, content=body, headers={"content-type": "application/json"})
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                fault = type(error).__name__
            else:
                if answer.is_success:
                    return None
                fault = f"HTTP {answer.status_code}"
        return fault
