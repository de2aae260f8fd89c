"""Where the time goes: py-spy looks at a worker under load, and its samples are counted by who had the processor."""

import asyncio
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

RATE = 200

# A sample belongs to the first of these whose mark is in its stack, looked for from the innermost frame outwards.
# Marks are ends of file names, as py-spy shows them, with a function where a file does several things.
OWNERS: Sequence[tuple[str, Sequence[str]]] = (
    ("prefilter: reading and network", ("cnn.py", "prefilter/")),
    ("rules: folding and RE2", ("adapters/rules.py", "core/text.py")),
    ("ledger: rows and COPY", ("sql/ledger.py", "sql/writers.py", "sql/rows.py", "asyncpg")),
    ("store: line to Valkey", ("redis/line.py", "redis/store.py", "core/quotas.py")),
    ("model door: tokens, budget, wire", ("tgi.py", "replicas.py", "meter.py", "wire.py", "token_files.py")),
    ("chain: LangChain and parser", ("adapters/chain.py", "langchain_core", "own_chain.py")),
    ("metrics", ("adapters/metrics.py", "prometheus_client")),
    ("traces", ("adapters/spans.py", "opentelemetry", "core/telemetry.py")),
    ("key and exchange", ("web/auth.py", "web/exchange.py", "core/keys.py")),
    ("body: read, parse, check", ("web/limits.py", "web/envelope.py", "adapters/schema.py")),
    ("answer: view, headers, JSON", ("web/answers.py", "web/reply.py", "web/problems.py")),
    ("engine and cascade", ("core/",)),
    ("handlers", ("web/api.py",)),
    ("Litestar: routing and hooks", ("litestar",)),
    ("Granian, event loop", ("granian", "asyncio", "uvloop")),
)  # fmt: skip


async def looked_at(pid: int, seconds: float) -> Counter[tuple[str, ...]] | None:
    """Stacks of a process, outermost frame first, with how often they were seen. None where py-spy cannot look."""
    if (found := _py_spy()) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "stacks"
        options = ("record", "--gil", "--pid", str(pid), "--duration", str(round(seconds)), "--rate", str(RATE))
        spy = await asyncio.create_subprocess_exec(
            found, *options, "--full-filenames", "--format", "raw", "--output", str(file),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await spy.wait()
        return _stacks(file.read_text("utf-8").splitlines()) if file.exists() else None


def by_owner(stacks: Counter[tuple[str, ...]]) -> list[tuple[str, float]]:
    """The share of each owner, the largest first."""
    owned: Counter[str] = Counter()
    for stack, count in stacks.items():
        owned[_owner(stack)] += count
    total = max(1, owned.total())
    return [(name, count / total) for name, count in owned.most_common()]


def _owner(stack: Sequence[str]) -> str:
    for frame in reversed(stack):
        for name, marks in OWNERS:
            if any(mark in frame for mark in marks):
                return name
    return "other"


def _stacks(lines: Iterable[str]) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        found[tuple(stack.split(";"))] += int(count)
    return found


def _py_spy() -> str | None:
    return shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
