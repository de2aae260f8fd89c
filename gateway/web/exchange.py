"""One HTTP exchange: its ids, when it began and who asks. Made once per request and kept in the ASGI scope."""

import re
import secrets
from typing import Any, cast

from litestar.connection import ASGIConnection

from gateway.core.clock import Clock
from gateway.core.errors import Unauthenticated
from gateway.core.inference import Caller, Origin
from gateway.core.trace import span_id

AnyConnection = ASGIConnection[Any, Any, Any, Any]

_SLOT = "gateway.exchange"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
# https://www.w3.org/TR/trace-context/#traceparent-header: an id of zeros is invalid, so is version ff.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class Exchange:
    """What every answer, good or bad, says of its request.

    `parent_span` and `parent_sampled` are what the caller's traceparent says, None without one. `sampled` is what this
    process makes of it; `span_id` is that of the first inference of the request, once there is one.
    """

    __slots__ = (
        "_caller", "parent_sampled", "parent_span", "request_id", "sampled", "span_id", "started_s", "trace_id",
    )  # fmt: skip

    def __init__(
        self, request_id: str, trace_id: str, parent_span: str | None, parent_sampled: bool | None, started_s: float
    ) -> None:
        self.request_id, self.trace_id = request_id, trace_id
        self.parent_span, self.parent_sampled = parent_span, parent_sampled
        self.sampled = parent_sampled is not False
        self.span_id: int | None = None
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

    def origin(self, run_id: str) -> Origin:
        """Where the inference of that id comes from."""
        if self.span_id is None:
            self.span_id = span_id(run_id)
        return Origin(self.request_id, self.started_s, self.parent_span, self.sampled)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer. The span id is our own: each hop has one."""
        span = secrets.token_hex(8) if self.span_id is None else f"{self.span_id:016x}"
        traceparent = f"00-{self.trace_id}-{span}-{'01' if self.sampled else '00'}"
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
        trace.group(2).decode() if trace else None,
        bool(int(trace.group(3), 16) & 1) if trace else None,
        clock.monotonic_s(),
    )
    scope[_SLOT] = exchange
    return exchange
