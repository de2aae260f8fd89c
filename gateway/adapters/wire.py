"""The one door to aiohttp: a request to a model server and its whole answer, or the fault that it met.

aiohttp, because on one core it carries about five times as many requests as httpx does at concurrency 64.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.adapters.model_port import Broken, Busy, NotConnected, Refused, Unreadable

CONNECT_TIMEOUT_S = 1.0

_TRACE_CONTEXT = TraceContextTextMapPropagator()
# 408 comes from servers that may have begun; 424 is TGI's word for a generation that failed.
_BEGUN = frozenset({408, 424})


class Answered(NamedTuple):
    """A 2xx answer, whole. Header names are case-insensitive."""

    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Connections to model servers: one per process. The number of requests in flight is bounded by the callers."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Answered:
        """Send, and read the answer to its end; the current trace goes along. Raises NotConnected, Busy, Refused or
        Broken. How long it may take is the caller's to say: only connecting is bounded here.
        """
        async with self._asked(method, url, headers, body) as response:
            return Answered(response.headers, await response.read())

    async def events(self, url: str, headers: Mapping[str, str], body: bytes) -> AsyncGenerator[bytes, None]:
        """POST, and the data of each server-sent event as it comes. Raises as `request` does, and Unreadable.

        Whoever stops before the end closes the generator, and with it the connection: the server then stops too.
        """
        async with self._asked("POST", url, headers, body) as response:
            try:
                async for line in response.content:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
            except ValueError as error:
                raise Unreadable("an event is too long", 200) from error

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def _asked(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A 2xx answer whose body is yet to be read. Raises NotConnected, Busy, Refused and Broken."""
        carrier = {"content-type": "application/json", **headers}
        _TRACE_CONTEXT.inject(carrier)
        try:
            async with self._open().request(method, url, data=body, headers=carrier, allow_redirects=False) as response:
                if response.status // 100 != 2:
                    raise _fault(response.status, Answered(response.headers, await response.read()))
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise NotConnected(str(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Broken(f"the connection failed: {error!r}") from error

    def _open(self) -> aiohttp.ClientSession:
        # Made on first use: a session belongs to the running loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                trust_env=False,
            )
        return self._session


def _fault(status: int, answered: Answered) -> Busy | Refused | Broken:
    # The body is not quoted: servers repeat the prompt in it.
    detail = f"HTTP {status}"
    if status == 429:
        return Busy(detail, status, _seconds(answered.headers.get("retry-after")))
    return Broken(detail, status) if status >= 500 or status in _BEGUN else Refused(detail, status)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
