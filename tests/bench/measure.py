"""The measurements, one after the other: floor, paths, memory, where the time goes, scaling."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import psutil
from msgspec import Struct

from bench.driver import Driven, Target, drive
from bench.ground import Ground, Served, busy_s, cpu_s, move
from bench.paths import FLOOR, HIT, LLM, PREFILTER, REFUSED, SLOW_LLM, Path, Requests, count_on_path, target
from bench.tables import Row, Scaling, Worker
from bench.where import by_owner, looked_at

CLIENTS = 64
_STEADY = 0.7


class Lengths(Struct, frozen=True):
    """Seconds for each kind of measurement, and requests until memory is looked at last."""

    warm: float = 1.5
    alone: float = 3.0
    full: float = 8.0
    steady: float = 4.0
    spied: float = 5.0
    scaling: float = 8.0
    requests: int = 100_000


SHORT = Lengths(warm=0.2, alone=0.2, full=0.4, steady=0.2, spied=1.0, scaling=0.3, requests=500)


class Bench:
    """Measures on a ground, for so long."""

    def __init__(self, ground: Ground, lengths: Lengths) -> None:
        self._ground, self._lengths = ground, lengths
        self._requests = Requests()

    async def floor(self) -> Row:
        """The bare handler on the gateway's core."""
        with self._ground.floor() as served:
            to = Target(served.port, "/tasks/any/invoke")
            return await self._row(FLOOR, served, to)

    async def paths(self, wanted: Sequence[Path]) -> tuple[list[Row], Worker, dict[str, list[tuple[str, float]]]]:
        """Each path through one worker, what that worker takes, and where its time goes."""
        rows, shares = [], {}
        with self._ground.stub() as llm, self._ground.gateway(llm, [self._ground.gateway_core]) as served:
            memory = [(0, served.resident_mb)]
            for path in wanted:
                rows.append(await self._path(path, served, llm))
            if PREFILTER in wanted:
                memory += await self._filled(served)
            for path in wanted:
                if found := await self._spied(path, served):
                    shares[path.name] = found
        return rows, Worker(served.ready_s, memory), shares

    async def slow(self) -> Row:
        """The LLM's path with a model that takes its time."""
        ground = self._ground
        with ground.stub(SLOW_LLM.delay_ms) as llm, ground.gateway(llm, [ground.gateway_core]) as served:
            return await self._path(SLOW_LLM, served, llm)

    async def scaling(self) -> Scaling:
        """The prefilter's path, with stores and driver on the same cores as the workers."""
        one, two = [await self._together(count) for count in (1, 2)]
        return Scaling(one, two)

    async def _path(self, path: Path, served: Served, llm: str) -> Row:
        waits_ms = await self._alone_at(llm) if path in (LLM, SLOW_LLM) else 0.0
        return await self._row(path, served, target(self._ground, path, served.port), waits_ms)

    async def _row(self, path: Path, served: Served, to: Target, waits_ms: float = 0.0) -> Row:
        lengths, bodies, core = self._lengths, self._requests.of(path), self._ground.other_core
        await drive(to, bodies, CLIENTS, lengths.warm)
        since, busy, used = datetime.now(UTC), busy_s(core), cpu_s(served.processes)
        full = await drive(to, bodies, CLIENTS, lengths.full)
        busy, used = busy_s(core) - busy, cpu_s(served.processes) - used
        answers = full.statuses.total()
        good = (
            full.statuses[path.status] if path in (REFUSED, FLOOR) else await count_on_path(self._ground, path, since)
        )
        alone = await drive(to, bodies, 1, lengths.alone)
        steady = await drive(to, bodies, CLIENTS, lengths.steady, _STEADY * full.per_s)
        return Row(
            path=path,
            per_s=full.per_s,
            p50_ms=full.quantile_ms(0.5),
            p90_ms=full.quantile_ms(0.9),
            p99_ms=full.quantile_ms(0.99),
            cpu_ms=used / answers * 1000,
            alone=(alone.quantile_ms(0.5) - waits_ms, alone.quantile_ms(0.99) - waits_ms),
            steady_p99_ms=steady.quantile_ms(0.99),
            on_path=good / answers,
            other_core=busy / full.seconds,
        )

    async def _filled(self, served: Served) -> list[tuple[int, float]]:
        """Memory as requests go by, four looks."""
        found, done = [], 0
        for _ in range(4):
            until = done + self._lengths.requests // 4
            while done < until:
                done += (await self._asked(PREFILTER, served, self._lengths.full / 4)).statuses.total()
            found.append((done, served.resident_mb))
        return found

    async def _spied(self, path: Path, served: Served) -> list[tuple[str, float]] | None:
        load = self._asked(path, served, self._lengths.spied + 1)
        _, stacks = await asyncio.gather(load, looked_at(served.worker.pid, self._lengths.spied))
        return by_owner(stacks) if stacks else None

    async def _together(self, workers: int) -> float:
        """Requests a second of a gateway of so many workers on so many cores, which stores and driver share."""
        ground = self._ground
        cores = [ground.gateway_core, ground.other_core][:workers]
        with ground.stub() as llm, ground.gateway(llm, cores, workers) as served:
            everything = [psutil.Process(), *ground.stores]
            move(everything, cores)
            try:
                await self._asked(PREFILTER, served, self._lengths.warm)
                return (await self._asked(PREFILTER, served, self._lengths.scaling)).per_s
            finally:
                move(everything, [ground.other_core])

    async def _alone_at(self, llm: str) -> float:
        """The median of a request to the stub itself, over one connection."""
        to = Target(int(llm.rsplit(":", 1)[1]), "/")
        return (await drive(to, self._requests.of(HIT), 1, self._lengths.alone)).quantile_ms(0.5)

    async def _asked(self, path: Path, served: Served, seconds: float) -> Driven:
        return await drive(target(self._ground, path, served.port), self._requests.of(path), CLIENTS, seconds)
