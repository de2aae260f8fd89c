"""What is measured, for Prometheus."""

from collections.abc import Sequence
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler

from gateway.core.errors import NotFound
from gateway.web.contract import contract
from gateway.web.doors import Doors
from gateway.web.exchange import exchange_of
from gateway.web.reply import Reply

TEXT = b"text/plain; version=0.0.4; charset=utf-8"

AnyRequest = Request[Any, Any, Any]


class MetricsPage:
    """For keys with the scope `admin`, or for everybody who can reach the port: the deployment decides."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handler with its path and contract."""
        scopes: tuple[Any, ...] = () if self._doors.telemetry.metrics_open else ("admin",)
        promised = contract(*scopes, answer=str, media_type="text/plain", errors=(NotFound,))
        return (get("/metrics", opt=promised)(self.read_metrics),)

    async def read_metrics(self, request: AnyRequest) -> Reply:
        """Everything that is measured, summed over the worker processes of this replica, in Prometheus's text format.

        Needs a key with the scope `admin`, unless `GATEWAY_METRICS` is `open`.
        """
        if self._doors.telemetry.metrics is None:
            raise NotFound("Nothing is measured here.")
        headers = exchange_of(request, self._doors.clock).headers()
        return Reply(await self._doors.telemetry.metrics(), headers, media_type=TEXT)
