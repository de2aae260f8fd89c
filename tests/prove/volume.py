"""A month of a million calls: reports and exports in time, sums equal to the rows, on both databases."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

from postgres import running_postgres
from stack import MIGRATIONS, ROOT

from gateway.adapters.exports import to_csv
from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.migrate import upgrade
from gateway.core.reports import focus_rows, grouped, total
from prove.world import Check

MONTH, AFTER = date(2026, 1, 1), date(2026, 2, 1)
START_S = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
REPORT_S, EXPORT_S = 2.0, 10.0
# What a month of a hundred times as many calls may take more, in MB.
FLAT_MB = 32
# A new process counts its parent's memory as its own peak, so the command gets a small parent.
_MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
T = TypeVar("T")

_ID = "printf('%08x-%04x-7000-8000-%012x', {ms} >> 16, {ms} & 65535, n)"
_PG_ID = (
    "(lpad(to_hex({ms} >> 16), 8, '0') || '-' || lpad(to_hex({ms} & 65535), 4, '0') "
    "|| '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
)
_CALL = """INSERT INTO model_call (id, attempt_id, inference_id, kind, task, stage, caller_team, owner_team, payer_team,
 key_id, model, replica, outcome, settled, input_tokens, output_tokens, cost_nano, started_at, duration_ms)
 SELECT {id}, {id}, {id}, 'invoke', 'task-' || (n % 5), 'llm', 'team-' || (n % 20), 'owner', 'team-' || (n % 20),
 'key', 'model-' || (n % 3), 'r', 'ok', {true}, 400 + n % 97, 1, 400000 + n % 97 * 1000 + 7, {at}, 30.0
 FROM {numbers}"""
_ATTEMPT = """INSERT INTO attempt (id, inference_id, task, position, stage, stage_kind, outcome, input_tokens,
 output_tokens, cost_nano, started_at, duration_ms)
 SELECT {id}, {id}, 'task-' || (n % 5), 0, 'llm', 'chain', 'decided', 400 + n % 97, 1, 400000 + n % 97 * 1000 + 7, {at},
 31.0 FROM {numbers}"""
_INFERENCE = """INSERT INTO inference (id, kind, task, caller_team, owner_team, payer_team, key_id, cache, status,
 input_tokens, output_tokens, cost_nano, duration_ms, upstream_ms, received_at)
 SELECT {id}, 'invoke', 'task-' || (n % 5), 'team-' || (n % 20), 'owner', 'team-' || (n % 20), 'key', 'miss',
 'accepted', 400 + n % 97, 1, 400000 + n % 97 * 1000 + 7, 31.0, 30.0, {at} FROM {numbers}"""


async def prove_volume(rows: int) -> Sequence[Check]:
    """The same on both, side by side: what is timed is timed while the other one works, too."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder, running_postgres() as url:
        file = f"sqlite:///{Path(folder) / 'gateway.db'}"
        for each in (file, url):
            await upgrade(each, MIGRATIONS)
        found = await asyncio.gather(_prove(file, "SQLite", rows), _prove(url, "Postgres", rows))
    return [check for checks in found for check in checks]


async def _prove(url: str, name: str, rows: int) -> Sequence[Check]:
    database = Database(url, 300)
    try:
        await _fill(database, rows)
        books = SqlBooks(database, ZoneInfo("UTC"))
        closed, closing_s = await _timed(books.close_days(datetime(2026, 2, 2, tzinfo=UTC)))
        days, report_s = await _timed(books.days(MONTH, AFTER))
        started = time.perf_counter()
        lines, focus = grouped(days, ("team", "task", "model")), focus_rows(days, "USD", ZoneInfo("UTC"))
        csv = to_csv(focus, list(focus[0]))
        export_s = report_s + time.perf_counter() - started
        expected = sum(400_007 + n % 97 * 1000 for n in range(1, rows + 1))
        totals, verify_s = await _timed(books.totals())
        off = totals.attempts_off + totals.inferences_off + len(totals.days_off)
    finally:
        await database.aclose()
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        written = Path(folder) / "month.csv"
        _, least_mb = await asyncio.to_thread(_report, url, written, date(2025, 1, 1), date(2025, 2, 1))
        command_s, peak_mb = await asyncio.to_thread(_report, url, written, MONTH, AFTER)
        same = written.read_bytes() == csv
    proof = f"4 volume, {name}"
    return [
        Check(proof, f"days closed, once, in {closing_s:.1f} s", str(len(closed)), len(closed) - 31),
        Check(proof, f"report of {rows:,} calls, {len(lines)} lines", f"{report_s:.2f} s", int(report_s > REPORT_S)),
        Check(proof, f"export of {len(csv):,} bytes", f"{export_s:.2f} s", int(export_s > EXPORT_S)),
        Check(proof, "`gateway usage report --csv`: the same bytes", f"{command_s:.1f} s", int(not same)),
        Check(
            proof,
            f"its memory at its peak, beside that of an empty month ({least_mb:.0f} MB)",
            f"{peak_mb:.0f} MB ({peak_mb - least_mb:+.0f})",
            int(peak_mb > least_mb + FLAT_MB),
        ),
        Check(proof, "nano-units in the report", f"{expected:,}", total(days)["cost_nano"] - expected),
        Check(proof, f"calls, attempts, inferences, days that differ ({verify_s:.1f} s for all)", str(off), off),
    ]


def _report(url: str, csv: Path, first: date, after: date) -> tuple[float, float]:
    """The command as finance runs it, in a process of its own: seconds, and its memory at its peak in MB."""
    command = (sys.executable, "-m", "gateway", "usage", "report", "--from", f"{first}", "--to", f"{after}")
    env = {**os.environ, "GATEWAY_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    run = (sys.executable, "-c", _MEASURE, *command, "--csv", f"{csv}")
    peak = int(subprocess.run(run, env=env, capture_output=True, check=True).stdout)
    # Linux counts in KiB, macOS in bytes.
    return time.perf_counter() - started, peak / (1024 if sys.platform == "linux" else 1024**2)


async def _timed(work: Awaitable[T]) -> tuple[T, float]:
    started = time.perf_counter()
    return await work, time.perf_counter() - started


async def _fill(database: Database, rows: int) -> None:
    """Rows spread evenly over the month, made by the database itself."""
    step_ms = 31 * 86400 * 1000 // (rows + 1)
    ms = f"({START_S * 1000} + CAST(n AS BIGINT) * {step_ms})"
    if database.postgres:
        given = {
            "id": _PG_ID.format(ms=ms), "true": "true", "at": f"to_timestamp({ms} / 1000.0)",
            "numbers": f"generate_series(1, {rows}) AS n",
        }  # fmt: skip
    else:
        series = f"(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows}) SELECT n FROM s)"
        given = {"id": _ID.format(ms=ms), "true": "1", "at": f"{ms} * 1000", "numbers": series}
    async with database.begin() as connection:
        for statement in (_INFERENCE, _ATTEMPT, _CALL):
            await connection.exec_driver_sql(statement.format(**given))
        if database.postgres:
            for table in ("inference", "attempt", "model_call"):
                await connection.exec_driver_sql(f"ANALYZE {table}")
