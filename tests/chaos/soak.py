"""Mixed requests over connections that stay open, so many that a leak would show: cache, prefilter, LLM and refusals.

The task is the shipped one; its LLM is a stub that answers at once, so that the gateway is what is worn out.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import linear_regression

import msgspec
import psutil
from bench.driver import Target
from bench.ground import TASK, callers, shipped_home
from bench.paths import HIT, LLM, PREFILTER, REFUSED, Requests
from bench.paths import Path as Way
from msgspec import Struct, field
from prove.world import Ground, world
from stack import ROOT
from tokenizers import Tokenizer

from chaos.load import GIVE_UP_S, Tally
from chaos.table import Result, shown
from chaos.world import gateways
from gateway.local.child import Child, free_port

WORKERS = 2
SLOPE_MB = 10.0
"""Memory that the workers together may gain over 100,000 requests."""
MIX = [HIT] * 10 + [PREFILTER] * 5 + [LLM] * 2 + [REFUSED] * 3
_CONNECTIONS = 48
_LOOK_S = 1.0
_WARM = 0.15
"""The share of the requests in which pools, caches and allocators fill up."""
_FEW = 20_000
"""With fewer requests nothing can be said of memory."""


async def soak(on: Ground, requests: int, defect: str = "") -> Result:
    """So many requests to a gateway of two workers: nothing is lost, and memory stays where it is."""
    async with world(on) as each, _stub(each.home) as llm:
        key, limited_key = await callers(each.postgres)
        home = shipped_home(each.home / "shipped")
        env = {"GATEWAY_HOME": str(home), "GATEWAY_WORKERS": str(WORKERS), "LLM_URL": llm, "CHAOS_DEFECT": defect}
        async with gateways(each, 1, **env, OTEL_EXPORTER_OTLP_ENDPOINT=llm) as ((url, child),):
            seen = Seen()
            port = int(url.rsplit(":", 1)[1])
            asking = _Asking(requests, seen, Target(port, _PATH, key), Target(port, _PATH, limited_key))
            began_s = time.monotonic()
            await asking.run(_workers(child))
            per_s = seen.tally.total / (time.monotonic() - began_s)
        recorded = (await each.booked()).runs
    tally = seen.tally
    if tally.total > _FEW and seen.slope_mb > SLOPE_MB:
        tally.wrong.append(f"memory grows by {seen.slope_mb:.0f} MB in 100,000 requests")
    by = ", ".join(f"{count:,} {name}" for name, count in seen.decided.most_common())
    memory = f"{seen.sizes[0][1] / 2**20:.0f} → {seen.sizes[-1][1] / 2**20:.0f} MB, {seen.slope_mb:+.1f} MB in 100,000"
    return shown(Result("soak", tally, len(tally.runs - recorded), f"{per_s:.0f}/s; by {by}; {memory}"))


class Seen(Struct):
    """What came of it. `decided` counts who answered; `sizes` are (requests so far, bytes of all workers)."""

    tally: Tally = field(default_factory=Tally)
    decided: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def slope_mb(self) -> float:
        """What 100,000 requests add to the memory of the workers, once they are warm."""
        warm = [each for each in self.sizes if each[0] > _WARM * self.tally.total]
        if len({asked for asked, _ in warm}) < 2:
            return 0.0
        return linear_regression(*zip(*warm, strict=True)).slope * 100_000 / 2**20

    def hear(self, way: Way, status: int, body: bytes) -> None:
        """Sort an answer: only the team with a limit is told to wait, and nobody but the rules finds anything."""
        tally, said = self.tally, msgspec.json.decode(body, type=_Body)
        if (status, said.code) in ((way.status, "quota_exceeded"), (503, "unavailable"), (503, "overloaded")):
            tally.refused[said.code] += 1
        elif status != 200 or said.metadata is None:
            tally.wrong.append(f"{way.name}: {status} {said.code}")
        else:
            self._hear_run(way, said.metadata)

    def _hear_run(self, way: Way, said: "_Metadata") -> None:
        self.tally.runs.add(said.run_id)
        if said.status == "deferred":
            self.tally.deferred += 1
        elif said.action != ("review" if said.stage == "rules" else "deliver"):
            self.tally.wrong.append(f"{way.name}: {said.action} by {said.stage}")
        else:
            self.tally.answered += 1
            self.decided["cache" if said.cached else said.stage or "nobody"] += 1


class _Metadata(Struct):
    run_id: str
    status: str
    action: str
    stage: str | None
    cached: bool


class _Body(Struct):
    code: str = ""
    metadata: _Metadata | None = None


class _Asking:
    """Who asks what next, until enough was asked."""

    def __init__(self, requests: int, seen: Seen, anybody: Target, limited: Target) -> None:
        self.seen, self._left = seen, requests
        self._anybody, self._limited = anybody, limited
        self._bodies, self._random = Requests(), random.Random(7)

    async def run(self, workers: Sequence[psutil.Process]) -> None:
        """Ask all of it, with a look at the workers now and then."""
        loop, port = asyncio.get_running_loop(), self._anybody.port
        made = [await loop.create_connection(lambda: _Connection(self), "127.0.0.1", port) for _ in range(_CONNECTIONS)]
        connections = [protocol for _, protocol in made]
        while any(each.asking for each in connections):
            self._look(sum(worker.memory_info().rss for worker in workers))
            await asyncio.sleep(_LOOK_S)
            for each in connections:
                each.give_up(time.monotonic() - GIVE_UP_S)

    def _look(self, resident: int) -> None:
        before, total = self.seen.sizes[-1][0] if self.seen.sizes else 0, self.seen.tally.total
        self.seen.sizes.append((total, resident))
        if before // _FEW < total // _FEW:
            print(f"soak: {total:,} requests, {resident / 2**20:.0f} MB", flush=True)

    def next(self) -> tuple[Way, bytes] | None:
        """What is asked, and the bytes of the request; None at the end."""
        if not self._left:
            return None
        self._left -= 1
        way = self._random.choice(MIX)
        by = self._limited if way is REFUSED else self._anybody
        return way, by.request(next(self._bodies.of(way)))


class _Connection(asyncio.Protocol):
    """One request at a time. Answers say their length."""

    def __init__(self, asking: _Asking) -> None:
        self._asking, self._received = asking, b""
        self.asking: Way | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        assert self.asking is not None, "nothing was asked"
        self._received = b""
        self._ends()
        self._asking.seen.hear(self.asking, int(head[9:12]), body)
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        if self.asking is not None:
            self._ends()
            self._asking.seen.tally.lost.append("the connection broke")
            self.asking = None

    def give_up(self, before_s: float) -> None:
        """Hang up on what was asked before then."""
        if self.asking is not None and self._began_s < before_s:
            self._transport.abort()

    def _ask(self) -> None:
        self._began_s = time.monotonic()
        if (asked := self._asking.next()) is None:
            self.asking = None
            self._transport.close()
        else:
            self.asking, request = asked
            self._transport.write(request)

    def _ends(self) -> None:
        tally = self._asking.seen.tally
        tally.worst_s = max(tally.worst_s, time.monotonic() - self._began_s)


_PATH = f"/tasks/{TASK}/invoke"


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    assert found, head
    return int(rest.split(b"\r\n", 1)[0])


def _workers(gateway: Child) -> list[psutil.Process]:
    """The processes that answer: the largest."""
    children = psutil.Process(gateway.process.pid).children()
    return sorted(children, key=lambda process: process.memory_info().rss)[-WORKERS:]


@asynccontextmanager
async def _stub(logs: Path) -> AsyncIterator[str]:
    """A model server that finds everything harmless at once, and takes spans."""
    tokenizer = Tokenizer.from_file(str(ROOT / "tasks" / TASK / "adapter/tokenizer.json"))
    labels = msgspec.json.encode([(label, tokenizer.token_to_id(label)) for label in "AB"]).decode()
    port = free_port()
    command = [sys.executable, "-m", "bench.stub", "--port", str(port), "--labels", labels]
    child = Child("stub", command, logs / "stub.log", {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    try:
        await asyncio.to_thread(child.wait_ready, f"http://127.0.0.1:{port}/info")
        yield f"http://127.0.0.1:{port}"
    finally:
        child.stop()
