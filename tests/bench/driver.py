"""The driver: keep-alive connections that ask over and over, and what was seen. A request costs it some 20 µs.

Closed, each connection asks again as soon as it is answered: that finds what a gateway can carry. Open, requests are
due at a steady rate whatever becomes of them, and latency counts from when they were due: that is what callers feel.
"""

import asyncio
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from typing import cast

from msgspec import Struct, field

_TICK_S = 0.001
_PATIENCE_S = 30.0


class Driven(Struct):
    """What came back: statuses (0: the connection broke), latencies in milliseconds, and how long it all took."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_ms: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: float = 0.0

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return self.statuses.total() / self.seconds

    def quantile_ms(self, share: float) -> float:
        """The latency that this share of the answers did not exceed."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Target(Struct, frozen=True):
    """A URL in parts, and the headers that go with every request."""

    port: int
    path: str
    key: str = ""

    def request(self, body: bytes) -> bytes:
        """The bytes of a POST."""
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-type: application/json\r\n"
        authorization = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"{head}{authorization}content-length: {len(body)}\r\n\r\n".encode() + body


async def drive(
    target: Target, bodies: Iterator[bytes], clients: int, seconds: float, rate: float | None = None
) -> Driven:
    """Ask for so long over so many connections, at `rate` requests a second or as fast as answers come."""
    driving = _Driving(target, bodies, rate)
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: _Connection(driving), "127.0.0.1", target.port))[1]
        for _ in range(clients)
    ]
    try:
        driving.begin(connections, seconds)
        await asyncio.wait_for(driving.over.wait(), seconds + _PATIENCE_S)
    finally:
        for connection in connections:
            connection.close()
    return driving.seen


class _Driving:
    """Who asks next, and when it is over."""

    def __init__(self, target: Target, bodies: Iterator[bytes], rate: float | None) -> None:
        self.seen, self.over = Driven(), asyncio.Event()
        self._target, self._bodies, self._rate = target, bodies, rate
        self._idle: list[_Connection] = []
        self._late: deque[float] = deque()
        self._asked = self._under_way = 0

    def begin(self, connections: "list[_Connection]", seconds: float) -> None:
        self._began_s = time.perf_counter()
        self._end_s = self._began_s + seconds
        if self._rate is None:
            for connection in connections:
                self._ask(connection, time.perf_counter())
        else:
            self._idle = connections[:]
            self._tick()

    def answered(self, connection: "_Connection", status: int, due_s: float) -> None:
        now_s = time.perf_counter()
        self.seen.statuses[status] += 1
        self.seen.latencies_ms.append((now_s - due_s) * 1000)
        self._under_way -= 1
        if self._late:
            self._ask(connection, self._late.popleft())
        elif self._rate is not None:
            self._idle.append(connection)
        elif now_s < self._end_s and status:
            self._ask(connection, now_s)
        if not self._under_way and now_s >= self._end_s:
            self._finish()

    def _ask(self, connection: "_Connection", due_s: float) -> None:
        self._under_way += 1
        connection.ask(self._target.request(next(self._bodies)), due_s)

    def _tick(self) -> None:
        """Everything that has come due is asked, or waits for a connection."""
        assert self._rate is not None
        now_s = time.perf_counter()
        while (due_s := self._began_s + self._asked / self._rate) <= min(now_s, self._end_s):
            self._asked += 1
            if self._idle:
                self._ask(self._idle.pop(), due_s)
            else:
                self._late.append(due_s)
        if now_s < self._end_s:
            asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        elif not self._under_way:
            self._finish()

    def _finish(self) -> None:
        self.seen.seconds = time.perf_counter() - self._began_s
        self.over.set()


class _Connection(asyncio.Protocol):
    """One request at a time. Answers must say their length, as all of these servers do."""

    def __init__(self, driving: _Driving) -> None:
        self._driving = driving
        self._received = b""
        self._due_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, due_s: float) -> None:
        self._due_s = due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._received = b""
        self._end(int(head[9:12]))

    def connection_lost(self, _: Exception | None) -> None:
        self._end(0)

    def close(self) -> None:
        self._due_s = None
        self._transport.close()

    def _end(self, status: int) -> None:
        due_s, self._due_s = self._due_s, None
        if due_s is not None:
            self._driving.answered(self, status, due_s)


def _length(head: bytes) -> int:
    name = b"\r\ncontent-length:"
    start = head.lower().index(name) + len(name)
    return int(head[start:].split(b"\r\n", 1)[0])
