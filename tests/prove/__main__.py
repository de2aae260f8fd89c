"""Run the proofs and print what they counted; status 1 where anything differs. `teeth`: with defects, all caught."""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prove.budget import prove_budget, prove_cache
from prove.death import prove_death
from prove.serve import DEFECTS
from prove.volume import prove_volume
from prove.world import Check, Ground, World, ground, world

TESTS = Path(__file__).parent.parent
MACHINES = {
    "3 state machine": ("adapters/test_redis_machine.py",),
    "5 clock": ("core/test_quotas.py", "test_thresholds.py", "adapters/sql/test_books.py"),
    "7 reviews": ("test_reviewers.py",),
}


async def prove(on: Ground, rounds: int, seconds: float, rows: int, seed: int) -> list[Check]:
    """All proofs, one after the other."""
    checks: list[Check] = []
    async with world(on) as each:
        checks += _shown(await prove_budget(each))
    async with world(on) as each:
        checks += _shown(await prove_cache(each))
    for name, files in MACHINES.items():
        checks += _shown([_pytest(name, files)])
    checks += _shown(await prove_volume(rows))
    async with world(on) as each:
        checks += _shown(await prove_death(each, rounds, seconds, seed))
    return checks


async def teeth(on: Ground) -> list[Check]:
    """Each defect, and the proof that must see it. A defect that nobody sees is a difference."""
    checks = []
    for defect in DEFECTS:
        async with world(on, defect) as each:
            found = await _proof_of(defect, each)
        seen = [check.says for check in found if check.difference]
        checks += _shown([Check("teeth", defect, "; ".join(seen) or "NOT CAUGHT", 0 if seen else 1)])
    return checks


async def _proof_of(defect: str, each: World) -> Sequence[Check]:
    """The proof that looks where the defect is."""
    if "cache" in defect:
        return await prove_cache(each)
    if "lost" in defect:
        return await prove_death(each, 3, 60, seed=0, deaths=("model",), patience_s=20)
    return await prove_budget(each, calls=20, requests=120)


def _pytest(name: str, files: Sequence[str]) -> Check:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:warnings", *(str(TESTS / file) for file in files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Check(name, " ".join(files), done.stdout.strip().splitlines()[-1][:60], int(done.returncode != 0))


def _shown(checks: Sequence[Check]) -> list[Check]:
    for check in checks:
        print(f"{check.proof}: {check.says}: {check.seen} (difference {check.difference})", flush=True)
    return list(checks)


def main() -> None:
    """Parse, prove, print."""
    parser = argparse.ArgumentParser(prog="prove")
    parser.add_argument("what", choices=["all", "teeth"], nargs="?", default="all")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--reviews", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=20261122)
    asked = parser.parse_args()
    os.environ["PROVE_REVIEWS"] = str(asked.reviews)
    started = time.monotonic()
    with ground() as on:
        run = teeth(on) if asked.what == "teeth" else prove(on, asked.rounds, asked.seconds, asked.rows, asked.seed)
        checks = asyncio.run(run)
    table = Table(
        "proof", "what was counted", "seen", "difference", title=f"make prove{'-teeth' * (asked.what != 'all')}"
    )
    for check in checks:
        table.add_row(
            check.proof, check.says, check.seen, str(check.difference), style="red" if check.difference else ""
        )
    Console().print(table, f"{time.monotonic() - started:.0f} s")
    sys.exit(any(check.difference for check in checks))


if __name__ == "__main__":
    main()
