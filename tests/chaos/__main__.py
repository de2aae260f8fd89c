"""Break things under load and print what became of every request; status 1 where any was lost or wrong, or hung.

`teeth`: with a defect seeded, each of which must turn the table red.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import psutil
from fault_server import serving
from msgspec import Struct
from prove.witness import Witness
from prove.world import Ground, World, ground, world
from rich.console import Console
from rich.table import Table
from stack import MIGRATIONS, MODELS
from tokenizers import Tokenizer

from chaos.events import EVENTS, Stage, calm
from chaos.load import Load, Tally
from chaos.serve import DEFECTS
from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.migrate import upgrade
from gateway.local.child import Child, free_port

TIMEOUT_S, DEADLINE_S = 1.0, 2.0
PATIENCE_S = 5.0
WORST_S = DEADLINE_S + 2 * PATIENCE_S + 3.0
"""The model's deadline, the ledger's patience for a database that is away (once for the intent, once for the row), and
what a busy machine adds."""
FULL_DISK_BYTES = 1_500_000
SOAK_SLOPE_MB = 20.0
"""Memory that a worker may gain over 100,000 requests."""


class Result(Struct, frozen=True):
    """One line of the table."""

    event: str
    tally: Tally
    unrecorded: int
    notes: str

    @property
    def bad(self) -> bool:
        """Whether anything was lost, wrong, unrecorded or late, or nothing was asked."""
        told = self.tally
        return bool(told.lost or told.wrong or self.unrecorded or told.worst_s > WORST_S or told.total == 0)


@asynccontextmanager
async def gateways(on: World, count: int, **env: str) -> AsyncIterator[list[tuple[str, Child]]]:
    """So many of them, bent by `env`."""
    with ExitStack() as stack:
        up = []
        for _ in range(count):
            port = free_port()
            given = {**on.settings, "GATEWAY_PORT": str(port), "GATEWAY_LEAVE_S": "0", "GATEWAY_SWEEP_S": "1", **env}
            child = Child("gateway", [sys.executable, "-m", "chaos.serve"], on.home / "logs" / f"{port}.log", given)
            stack.callback(child.stop)
            up.append((f"http://127.0.0.1:{port}", child))
        for url, child in up:
            await asyncio.to_thread(child.wait_ready, f"{url}/health/ready", 120)
        yield up


@asynccontextmanager
async def stage(on: Ground, seconds: float) -> AsyncIterator[Stage]:
    """A world whose model has two replicas, each behind a proxy of its own."""
    async with world(on) as each:
        second = Witness(Tokenizer.from_file(str(on.model / "tokenizer.json")), on.server)
        async with serving(second) as other:
            each.declare(TIMEOUT_S, DEADLINE_S)
            two = MODELS.replace('["env:LLM_URL"]', f'["{each.llm}", "{other}"]')
            (each.home / "models.toml").write_text(two, "utf-8")
            clock = each.home / "clock"
            clock.write_text("0", "utf-8")
            yield Stage(each, [each.model, second], clock, 0, seconds, [])
        await second.aclose()


async def break_things(on: Ground, seconds: float, defect: str = "") -> list[Result]:
    """Every event, one after the other, against two gateways."""
    results = []
    async with stage(on, seconds) as at:
        key = await new_key(at.world.postgres, "shop", frozenset({"invoke"}))
        async with gateways(at.world, 2, CHAOS_CLOCK=str(at.clock), CHAOS_DEFECT=defect) as up:
            at.port = int(up[0][0].rsplit(":", 1)[1])
            for name, event in EVENTS.items():
                at.notes.clear()
                load = Load([url for url, _ in up], key)
                async with load.running() as tally:
                    await event(at)
                recorded = (await at.world.booked()).runs
                results.append(_shown(Result(name, tally, len(tally.runs - recorded), ", ".join(at.notes))))
                if defect and results[-1].bad:
                    break
    return results


async def fill_disk(on: Ground, seconds: float) -> Result:
    """SQLite on a disk that fills up: what cannot be recorded is refused."""
    async with stage(on, seconds) as at:
        file = at.world.home / "small.db"
        url = f"sqlite:///{file}"
        await upgrade(url, MIGRATIONS)
        key = await new_key(url, "shop", frozenset({"invoke"}))
        small = {"GATEWAY_DATABASE_URL": url, "CHAOS_FILE_BYTES": str(FULL_DISK_BYTES)}
        async with gateways(at.world, 1, **small) as up:
            load = Load([up[0][0]], key)
            async with load.running() as tally:
                await calm(at)
        database = Database(url)
        async with database.begin() as connection:
            rows = set((await connection.exec_driver_sql("SELECT id FROM inference")).scalars())
        await database.aclose()
        full = "full" if tally.refused else "did not fill up"
        return _shown(Result("the disk is full", tally, len(tally.runs - rows), full))


async def soak(on: Ground, requests: int, seconds: float) -> Result:
    """Mixed requests, so many or for so long: nothing is lost, and memory stays where it is."""
    async with stage(on, seconds) as at:
        key = await new_key(at.world.postgres, "shop", frozenset({"invoke"}))
        async with gateways(at.world, 1) as up:
            load, ends = Load([up[0][0]], key), time.monotonic() + seconds
            worker = psutil.Process(up[0][1].process.pid).children()[0]
            warm: tuple[int, float] | None = None
            async with load.running(32) as tally:
                while tally.total < requests and time.monotonic() < ends:
                    await asyncio.sleep(0.5)
                    # Caches and pools fill up first.
                    if warm is None and tally.total > 2000:
                        warm = tally.total, worker.memory_info().rss / 2**20
            total, after = tally.total, worker.memory_info().rss / 2**20
        recorded = (await at.world.booked()).runs
    before, then = warm or (total, after)
    slope = (after - then) / max(1, total - before) * 100_000
    if total - before > 20_000 and slope > SOAK_SLOPE_MB:
        tally.wrong.append(f"memory grows by {slope:.0f} MB in 100,000 requests")
    notes = f"{total:,} of {requests:,} requests; {then:.0f} → {after:.0f} MB, {slope:+.0f} MB in 100,000"
    return _shown(Result("soak", tally, len(tally.runs - recorded), notes))


async def everything(on: Ground, seconds: float, requests: int, soak_s: float) -> list[Result]:
    """All of it."""
    return [*await break_things(on, seconds), await fill_disk(on, seconds), await soak(on, requests, soak_s)]


async def teeth(on: Ground, seconds: float) -> dict[str, list[Result]]:
    """Each defect with the events until one sees it."""
    return {defect: await break_things(on, seconds, defect) for defect in DEFECTS}


def _shown(result: Result) -> Result:
    told = result.tally
    why = f"{dict(Counter(told.lost))} {dict(Counter(told.wrong))} {result.unrecorded} {told.worst_s:.1f} s"
    print(f"{result.event}: {f'BAD {why}' if result.bad else 'ok'}, {told.total} requests", flush=True)
    return result


def _table(results: list[Result], title: str) -> Table:
    names = ("event", "answered", "deferred", "refused", "lost", "wrong", "no row", "worst s", "notes")
    table = Table(*names, title=title)
    for each in results:
        told = each.tally
        refused = ", ".join(f"{count} {code}" for code, count in told.refused.items()) or "0"
        why = "; ".join([*sorted({*told.lost, *told.wrong})[:3], *([each.notes] if each.notes else [])])
        numbers = (told.answered, told.deferred, refused, len(told.lost), len(told.wrong), each.unrecorded)
        row = (each.event, *map(str, numbers), f"{told.worst_s:.1f}", why)
        table.add_row(*row, style="red" if each.bad else "")
    return table


def main() -> None:
    """Parse, break, print."""
    if sys.platform != "linux":
        print("make chaos: Linux only")
        sys.exit(2)
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("what", choices=["all", "teeth"], nargs="?", default="all")
    parser.add_argument("--seconds", type=float, default=12, help="how long each event lasts")
    parser.add_argument("--soak", type=int, default=int(os.environ.get("CHAOS_SOAK", "200000")))
    parser.add_argument("--soak-seconds", type=float, default=float(os.environ.get("CHAOS_SOAK_SECONDS", "180")))
    asked = parser.parse_args()
    console, started = Console(width=160), time.monotonic()
    with ground() as on:
        if asked.what == "teeth":
            found = asyncio.run(teeth(on, asked.seconds))
            for defect, results in found.items():
                console.print(_table(results, defect))
            missed = [defect for defect, results in found.items() if not any(each.bad for each in results)]
            console.print(f"not caught: {missed}" if missed else "every defect was caught")
            sys.exit(bool(missed))
        results = asyncio.run(everything(on, asked.seconds, asked.soak, asked.soak_seconds))
        console.print(_table(results, "make chaos"), f"{time.monotonic() - started:.0f} s")
    sys.exit(any(each.bad for each in results))


if __name__ == "__main__":
    main()
