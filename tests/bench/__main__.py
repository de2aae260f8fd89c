"""Measure a gateway on one core and print the tables. Linux, two cores."""

import argparse
import os
import sys
import time

import uvloop
from rich.console import Console
from rich.table import Table

from bench import peers
from bench.ground import Ground, ground, on_cores
from bench.measure import SHORT, Bench, Lengths
from bench.paths import PATHS
from bench.tables import owners_table, paths_table, worker_table


async def measured(on: Ground, lengths: Lengths) -> list[Table]:
    """Everything about our own gateway."""
    bench = Bench(on, lengths)
    floor = await bench.floor()
    rows, worker, shares = await bench.paths(PATHS)
    rows.insert(-1, await bench.slow())
    scaling = await bench.scaling()
    return [paths_table(rows, floor), worker_table(worker, scaling), owners_table(shares)]


def main() -> None:
    """Parse, measure, print."""
    if sys.platform != "linux":
        print("make bench: Linux only")
        sys.exit(2)
    if len(os.sched_getaffinity(0)) < 2:
        print("make bench: needs two cores, one for the gateway and one for all the rest")
        sys.exit(2)
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--short", action="store_true", help="a second each: whether it runs, not how fast")
    parser.add_argument("--peers", metavar="PYTHON", type=peers.found, help="beside the LiteLLM of that interpreter")
    asked = parser.parse_args()
    lengths = SHORT if asked.short else Lengths()
    console, began_s = Console(width=160), time.monotonic()
    with ground() as on, on_cores([on.other_core]):
        if asked.peers is not None:
            console.print(uvloop.run(peers.compared(on, asked.peers, lengths)))
        else:
            console.print(*uvloop.run(measured(on, lengths)))
    console.print(f"{time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
