"""What a request may cost before it is understood: the size, the pace and the depth of its body, failed keys."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from litestar import Request
from litestar.types import Receive

from gateway.core.clock import Clock
from gateway.core.errors import SlowBody, TooLarge
from gateway.web.doors import WebSettings
from gateway.web.exchange import AnyConnection, header

# The end of the body ends a string too: otherwise one that never ends would be looked for again at each quote in it.
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


async def read_body(request: "Request[Any, Any, Any]", settings: WebSettings) -> bytes:
    """The whole body. Raises TooLarge as soon as it is too long, declared or not; SlowBody when it takes too long."""
    declared = header(request, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > settings.max_body_bytes:
        raise _too_large(settings)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(request.receive, settings)
    except TimeoutError:
        raise SlowBody(f"The body was not complete after {settings.body_timeout_s:g} seconds.") from None


async def _read(receive: Receive, settings: WebSettings) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise SlowBody("The client went away before its body was whole.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > settings.max_body_bytes:
            raise _too_large(settings)
        if not message.get("more_body", False):
            return b"".join((*chunks, chunk)) if chunks else bytes(chunk)
        chunks.append(chunk)


def _too_large(settings: WebSettings) -> TooLarge:
    return TooLarge(f"The body is larger than {settings.max_body_bytes} bytes.", limit_bytes=settings.max_body_bytes)


def more_values_than(limit: int, body: bytes) -> bool:
    """Whether a body lists more values than `limit`: each is parsed, checked and kept. Linear, JSON or not."""
    if body.count(b",") <= limit:
        return False
    return _STRINGS.sub(b"", body).count(b",") > limit


def deeper_than(depth: int, body: bytes) -> bool:
    """Whether valid JSON nests deeper than `depth`. Linear in the body for a fixed depth; most bodies need one count.

    Each round takes the innermost brackets away, so that what is left after `depth` rounds is deeper.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    nest = _STRINGS.sub(b"", body).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(depth):
        if not nest:
            return False
        nest = nest.replace(b"[]", b"")
    return bool(nest)


class FailureThrottle:
    """A token bucket per client address for keys that did not prove anything. Bounded: the oldest address is forgotten.

    In process only: it slows guessing and protects the key store, it is no quota.
    """

    def __init__(self, clock: Clock, burst: int = 20, per_s: float = 1.0, addresses: int = 4096) -> None:
        self._now: Callable[[], float] = clock.monotonic_s
        self._burst, self._per_s, self._addresses = burst, per_s, addresses
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, address: str) -> float:
        """How long this address should wait before it presents another bad key; 0 where it need not."""
        left = self._left(address)
        return 0.0 if left >= 1 else (1 - left) / self._per_s

    def failed(self, address: str) -> None:
        """One more key from there was no good."""
        left = self._left(address)
        self._buckets.pop(address, None)
        if len(self._buckets) >= self._addresses:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[address] = (max(0.0, left - 1), self._now())

    def _left(self, address: str) -> float:
        tokens, at_s = self._buckets.get(address, (float(self._burst), 0.0))
        return min(self._burst, tokens + (self._now() - at_s) * self._per_s)


def address_of(connection: AnyConnection) -> str:
    """Where the request came from, as the server saw it; forwarded headers are anybody's to write."""
    client = connection.scope.get("client")
    return client[0] if client else ""
