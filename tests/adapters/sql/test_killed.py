"""What was awaited survives the death of the process that wrote it."""

import asyncio
import os
import sys
from pathlib import Path

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.runs import SqlRuns

_TESTS = Path(__file__).parents[2]
_WRITER = """
import asyncio, sys
from stories import inference
from gateway.adapters.sql.ledger import open_ledger

async def client(ledger):
    while True:
        told = inference()
        await ledger.record(told)
        print(told.id, flush=True)

async def main():
    ledger = open_ledger(sys.argv[1])
    await asyncio.gather(*(client(ledger) for _ in range(16)))

asyncio.run(main())
"""


async def test_rows_that_were_awaited_survive_a_kill(database_url: str) -> None:
    """SIGKILL in the middle of traffic loses no inference whose record had returned."""
    path = os.pathsep.join((str(_TESTS), str(_TESTS.parent)))
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, database_url,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert writer.stdout is not None
    awaited = [(await writer.stdout.readline()).decode().strip() for _ in range(200)]
    writer.kill()
    rest = (await writer.stdout.read()).decode().splitlines(keepends=True)
    awaited += [line.strip() for line in rest if line.endswith("\n")]
    await writer.wait()
    database = Database(database_url)
    runs = SqlRuns(database)
    assert [run_id for run_id in awaited if await runs.find(run_id) is None] == []
    assert len(awaited) >= 200
    await database.aclose()
