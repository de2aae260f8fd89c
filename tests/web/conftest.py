"""The web layer behind a real server on a real socket, over ports in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
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
        async with httpx.AsyncClient(base_url=url, headers=headers, transport=transport, timeout=20) as client:
            await client.get("/health/live")
            yield Served(memory, url, client)
    finally:
        server.stop()
        await running


@pytest.fixture
def serve() -> Serve:
    """For tests that need a gateway of their own: `async with serve(settings) as served`."""
    return serving


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Served]:
    """One gateway for the tests of a file."""
    async with serving() as running:
        yield running
