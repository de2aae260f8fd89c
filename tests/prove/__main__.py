"""Run the proofs and print what they counted; status 1 where anything differs.

`make prove` runs `money`, `make prove-reviews` runs `people`; of `teeth`, defects that are seeded, all must be caught.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.table import Table

from prove.budget import prove_budget, prove_cache
from prove.death import prove_death
from prove.held import prove_held
from prove.serve import DEFECTS
from prove.volume import prove_volume
from prove.world import Check, Ground, World, ground, world

TESTS = Path(__file__).parent.parent


class Asked(Struct, frozen=True):
    """How much is to be done."""

    rounds: int
    seconds: float
    rows: int
    kills: int
    seed: int


class Part(Struct, frozen=True):
    """What a proof found, and how long it took."""

    checks: Sequence[Check]
    seconds: float


Proof = Callable[[Ground, Asked], Awaitable[Sequence[Check]]]


async def _budget(on: Ground, asked: Asked) -> Sequence[Check]:
    async with world(on) as each:
        return await prove_budget(each)


async def _death(on: Ground, asked: Asked) -> Sequence[Check]:
    async with world(on) as each:
        return await prove_death(each, asked.rounds, asked.seconds, asked.seed)


async def _volume(on: Ground, asked: Asked) -> Sequence[Check]:
    return await prove_volume(asked.rows)


async def _held(on: Ground, asked: Asked) -> Sequence[Check]:
    async with world(on) as each:
        return await prove_held(each.postgres, each.valkey, each.home / "held", asked.kills, asked.seed)


async def _cache(on: Ground, asked: Asked) -> Sequence[Check]:
    async with world(on) as each:
        return await prove_cache(each)


def _pytest(name: str, *files: str) -> Proof:
    """Tests as a proof: they count as one check."""

    async def proof(on: Ground, asked: Asked) -> Sequence[Check]:
        paths = [str(TESTS / file) for file in files]
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pytest", "-x", "-p", "no:warnings", *paths, stdout=asyncio.subprocess.PIPE
        )
        words, _ = await run.communicate()
        if run.returncode:
            print(words.decode())
        return [Check(name, " ".join(files), words.decode().strip().splitlines()[-1][:60], run.returncode or 0)]

    return proof


MONEY: dict[str, Proof] = {
    "budget": _budget,
    "death": _death,
    "machine": _pytest("3 state machine", "adapters/test_redis_machine.py"),
    "volume": _volume,
    "clock": _pytest("5 clock", "core/test_quotas.py", "test_thresholds.py", "adapters/sql/test_books.py"),
    "cache": _cache,
}
PEOPLE: dict[str, Proof] = {
    "reviews": _pytest("7 reviews", "test_reviewers.py"),
    "held": _held,
    "demo": _pytest("9 the demo's page", "test_demo_page.py"),
}
PROOFS = MONEY | PEOPLE


async def prove(on: Ground, asked: Asked, names: Sequence[str]) -> list[Part]:
    """These proofs, one after the other."""
    return [await _timed(PROOFS[name](on, asked)) for name in names]


async def teeth(on: Ground) -> list[Part]:
    """Each defect, and the proof that must see it. A defect that nobody sees is a difference."""
    return [await _timed(_bitten(on, defect)) for defect in DEFECTS]


async def _bitten(on: Ground, defect: str) -> Sequence[Check]:
    async with world(on, defect) as each:
        found = await _proof_of(defect, each)
    seen = [check for check in found if check.difference]
    said = "; ".join(f"{check.says}: {check.seen}" for check in seen)
    return [Check("teeth", defect, said or "NOT CAUGHT", 0 if seen else 1)]


async def _proof_of(defect: str, each: World) -> Sequence[Check]:
    """The proof that looks where the defect is."""
    if "cache" in defect:
        return await prove_cache(each)
    if "lost" in defect:
        return await prove_death(each, 3, 60, seed=0, deaths=("model",), patience_s=20)
    return await prove_budget(each, calls=20, requests=120)


async def _timed(proof: Awaitable[Sequence[Check]]) -> Part:
    started = time.monotonic()
    part = Part(await proof, time.monotonic() - started)
    for check in part.checks:
        print(f"{check.proof}: {check.says}: {check.seen} (difference {check.difference})", flush=True)
    return part


def _table(parts: Sequence[Part], title: str) -> Table:
    """One row for each check; the first of a part says how long the part took."""
    table = Table("proof", "what was counted", "seen", title=title)
    for name in ("difference", "seconds"):
        table.add_column(name, justify="right")
    for part in parts:
        for place, check in enumerate(part.checks):
            took = f"{part.seconds:.0f}" if place == 0 else ""
            style = "red" if check.difference else ""
            table.add_row(check.proof, check.says, check.seen, f"{check.difference:,}", took, style=style)
        table.add_section()
    return table


def main() -> None:
    """Parse, prove, print."""
    parser = argparse.ArgumentParser(prog="prove")
    parser.add_argument("what", choices=["money", "people", "teeth", *PROOFS], nargs="?", default="money")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reviews", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20261122)
    given = parser.parse_args()
    os.environ |= {"PROVE_REVIEWS": str(given.reviews), "PROVE_DEMO": "1"}
    asked = Asked(given.rounds, given.seconds, given.rows, given.kills, given.seed)
    started = time.monotonic()
    with ground() as on:
        names = {"money": list(MONEY), "people": list(PEOPLE)}.get(given.what, [given.what])
        parts = asyncio.run(teeth(on) if given.what == "teeth" else prove(on, asked, names))
    differences = sum(check.difference != 0 for part in parts for check in part.checks)
    Console().print(_table(parts, f"what was proven: {given.what}"))
    took_s = time.monotonic() - started
    print(f"{len(parts)} parts, {differences} check(s) that differ, {took_s:.0f} s in all")
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
