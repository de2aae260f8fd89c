"""The web layer behind a real server on a real socket, over ports in memory, and what is said to it by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
from granian.constants import Interfaces
from granian.server.embed import Server
from in_memory import Memory
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway.local.child import free_port
from gateway.web.doors import WebSettings
from gateway.web.wiring import create_app


class Served(Struct, frozen=True):
    """A running gateway, what lies behind it, and a client with the key of the team `market`."""

    memory: Memory
    url: str
    client: httpx.AsyncClient

    def as_team(self, team: str) -> dict[str, str]:
        """The headers of another team."""
        return {"authorization": f"Bearer {self.memory.tokens[team]}"}

    def with_key(self, text: str) -> dict[str, str]:
        """The headers of a certain key."""
        return {"authorization": f"Bearer {text}"}


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def serving(
    settings: WebSettings | None = None, more: Sequence[HTTPRouteHandler] = (), **doors: Any
) -> AsyncIterator[Served]:
    """A gateway of its own."""
    memory, port = Memory(), free_port()
    app = create_app(memory.doors(**doors), settings or WebSettings(), more)
    server = Server(app, port=port, interface=Interfaces.ASGI, log_enabled=False, websockets=False)
    running = asyncio.create_task(server.serve())
    url = f"http://127.0.0.1:{port}"
    headers = {"authorization": f"Bearer {memory.tokens['market']}"}
    transport = httpx.AsyncHTTPTransport(retries=8)
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, transport=transport, timeout=60) as client:
            await client.get("/health/live")
            yield Served(memory, url, client)
    finally:
        server.stop()
        await running


def head_of_invoke(served: Served, rest: bytes) -> bytes:
    """A hand-made request up to the end of its Authorization header, then `rest`."""
    key = served.memory.tokens["market"].encode()
    invoke = b"/tasks/message-moderation/invoke"
    return b"POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n" % (invoke, key) + rest


async def by_hand(served: Served, rest: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a hand-made request whose connection stays open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    try:
        writer.write(head_of_invoke(served, rest))
        await writer.drain()
        async with asyncio.timeout(60):
            status, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            lengths = [line.partition(b":")[2] for line in headers if line.startswith(b"content-length:")]
            return int(status.split()[1]), await reader.readexactly(int(lengths[0]))
    finally:
        writer.close()
