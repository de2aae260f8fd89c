"""Break things under load and print what became of every request; status 1 where any was lost or wrong, or hung.

`teeth`: with a defect seeded, each of which must turn the table red.
"""

import argparse
import asyncio
import os
import sys
import time

from prove.world import Ground, ground
from rich.console import Console
from stack import MIGRATIONS

from chaos.events import EVENTS, calm
from chaos.load import Load
from chaos.serve import DEFECTS, LEAK
from chaos.soak import soak
from chaos.table import Result, shown, table
from chaos.world import gateways, stage
from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.migrate import upgrade

FULL_DISK_BYTES = 1_500_000
SOAK = 200_000
LEAKING_SOAK = 30_000
"""Requests after which a leak shows."""


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
                results.append(shown(Result(name, tally, len(tally.runs - recorded), ", ".join(at.notes))))
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
        return shown(Result("the disk is full", tally, len(tally.runs - rows), full))


async def everything(on: Ground, seconds: float, requests: int) -> list[Result]:
    """All of it."""
    return [*await break_things(on, seconds), await fill_disk(on, seconds), await soak(on, requests)]


async def teeth(on: Ground, seconds: float) -> dict[str, list[Result]]:
    """Each defect with the events until one sees it; a leak is the soak's to see."""
    seen = {defect: await break_things(on, seconds, defect) for defect in DEFECTS if defect != LEAK}
    return {**seen, LEAK: [await soak(on, LEAKING_SOAK, LEAK)]}


def main() -> None:
    """Parse, break, print."""
    if sys.platform != "linux":
        print("make chaos: Linux only")
        sys.exit(2)
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("what", choices=["all", "teeth", "soak"], nargs="?", default="all")
    parser.add_argument("--seconds", type=float, default=7, help="how long each event lasts")
    parser.add_argument("--soak", type=int, default=int(os.environ.get("CHAOS_SOAK", SOAK)), help="requests")
    asked = parser.parse_args()
    console, started = Console(width=160), time.monotonic()
    with ground() as on:
        if asked.what == "teeth":
            found = asyncio.run(teeth(on, asked.seconds))
            for defect, results in found.items():
                console.print(table(results, defect))
            missed = [defect for defect, results in found.items() if not any(each.bad for each in results)]
            console.print(f"not caught: {missed}" if missed else "every defect was caught")
            sys.exit(bool(missed))
        if asked.what == "soak":
            results = [asyncio.run(soak(on, asked.soak))]
        else:
            results = asyncio.run(everything(on, asked.seconds, asked.soak))
        console.print(table(results, "make chaos"), f"{time.monotonic() - started:.0f} s")
    sys.exit(any(each.bad for each in results))


if __name__ == "__main__":
    main()
