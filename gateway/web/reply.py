"""An answer that is already bytes.

Handlers return it in place of a framework response: nothing is left to encode, copy or look up, which on the request
path is worth more than every convenience.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from litestar.types import Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

_encode = msgspec.json.Encoder().encode

JSON = b"application/json"
PROBLEM = b"application/problem+json"
EVENTS = b"text/event-stream; charset=utf-8"


class Reply:
    """Status, headers and body; an ASGI application that sends them."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: bytes, headers: Headers, status: int = 200, media_type: bytes = JSON) -> None:
        self.body, self.status = body, status
        self.headers = headers
        headers.append((b"content-type", media_type))
        headers.append((b"content-length", str(len(body)).encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})

    def to_asgi_response(self, *_: object, **__: object) -> "Reply":
        """Exception handlers are asked for this; there is nothing to convert."""
        return self


class EventStream(Reply):
    """Server-sent events as they come to be."""

    __slots__ = ("_events",)

    def __init__(self, events: AsyncIterator[bytes], headers: Headers) -> None:
        self._events = events
        self.body, self.status = b"", 200
        self.headers = [*headers, (b"content-type", EVENTS), (b"x-accel-buffering", b"no")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_reply(value: Any, headers: Headers, status: int = 200) -> Reply:
    """A value as JSON."""
    return Reply(_encode(value), headers, status)


def events_reply(events: Sequence[tuple[bytes, Any]], headers: Headers) -> Reply:
    """Server-sent events, all known at once: (name, value) each. JSON has no raw line breaks, so one data line does."""
    return Reply(b"".join(event(name, value) for name, value in events), headers, media_type=EVENTS)


def event(name: bytes, value: Any) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name, _encode(value) if value is not None else b"")
