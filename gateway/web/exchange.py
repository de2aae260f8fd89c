"""One HTTP exchange: its ids, when it began and who asks. Made once per request and kept in the ASGI scope."""

import re
import secrets
from typing import Any, cast

from litestar.connection import ASGIConnection

from gateway.core.clock import Clock
from gateway.core.errors import Unauthenticated
from gateway.core.inference import Caller

AnyConnection = ASGIConnection[Any, Any, Any, Any]

_SLOT = "gateway.exchange"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
# https://www.w3.org/TR/trace-context/#traceparent-header: an id of zeros is invalid, so is version ff.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")


class Exchange:
    """What every answer, good or bad, says of its request."""

    __slots__ = ("_caller", "request_id", "started_s", "trace_flags", "trace_id")

    def __init__(self, request_id: str, trace_id: str, trace_flags: str, started_s: float) -> None:
        self.request_id, self.trace_id, self.trace_flags = request_id, trace_id, trace_flags
        self.started_s = started_s
        self._caller: Caller | None = None

    @property
    def caller(self) -> Caller:
        """Who asks. Raises Unauthenticated where nobody has proved it."""
        if self._caller is None:
            raise Unauthenticated("This needs a key.")
        return self._caller

    @caller.setter
    def caller(self, caller: Caller) -> None:
        self._caller = caller

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer. The span id is our own: each hop has one."""
        traceparent = f"00-{self.trace_id}-{secrets.token_hex(8)}-{self.trace_flags}"
        return [
            (b"x-request-id", self.request_id.encode()),
            (b"traceparent", traceparent.encode()),
            (b"cache-control", b"no-store"),
        ]


def header(connection: AnyConnection, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    for key, value in connection.scope["headers"]:
        if key == name:
            return value
    return None


def exchange_of(connection: AnyConnection, clock: Clock) -> Exchange:
    """The exchange of a request; the caller's own request id and trace id are continued where they are well-formed."""
    scope = cast(dict[str, Any], connection.scope)
    if (known := scope.get(_SLOT)) is not None:
        return cast(Exchange, known)
    request_id = header(connection, b"x-request-id")
    traceparent = header(connection, b"traceparent")
    trace = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    exchange = Exchange(
        request_id.decode() if request_id and _REQUEST_ID.fullmatch(request_id) else clock.new_id(),
        trace.group(1).decode() if trace else secrets.token_hex(16),
        trace.group(2).decode() if trace else "01",
        clock.monotonic_s(),
    )
    scope[_SLOT] = exchange
    return exchange
