"""What stands around a measurement: stores and a model stub on one core, gateways on another."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from msgspec import Struct
from postgres import database_of, running_postgres
from stack import MIGRATIONS, ROOT
from tokenizers import Tokenizer

from gateway.adapters.sql.access import new_key, opened
from gateway.adapters.sql.migrate import upgrade
from gateway.adapters.sql.teams import SqlTeams
from gateway.core.records import TeamLimit
from gateway.local.child import Child, free_port
from gateway.local.valkey import Valkey

TASK = "message-moderation"
LIMITED = "limited"
"""A team that may ask once an hour."""
_READY_S = 60
_OURS = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}


class Served(Struct, frozen=True):
    """A server with all its processes, and how long it took to become ready."""

    port: int
    ready_s: float
    processes: Sequence[psutil.Process]

    @property
    def worker(self) -> psutil.Process:
        """The process that answers: the largest."""
        return max(self.processes, key=lambda process: process.memory_info().rss)

    @property
    def resident_mb(self) -> float:
        """Memory of the largest worker."""
        return float(self.worker.memory_info().rss / 2**20)


class Ground(Struct, frozen=True):
    """The cores, the shared parts and the keys. `stores` are the first processes of Postgres and Valkey."""

    gateway_core: int
    other_core: int
    home: Path
    database: str
    redis: str
    key: str
    limited_key: str
    stores: Sequence[psutil.Process]
    labels: str

    @contextmanager
    def gateway(self, llm: str, cores: Sequence[int], workers: int = 1) -> Iterator[Served]:
        """`gateway serve` as it ships: ledger in sync, metrics on, spans exported to a collector."""
        port = free_port()
        env = {
            "GATEWAY_HOME": str(self.home),
            "GATEWAY_DATABASE_URL": self.database,
            "GATEWAY_REDIS_URL": self.redis,
            "GATEWAY_PORT": str(port),
            "GATEWAY_WORKERS": str(workers),
            "GATEWAY_LEAVE_S": "0",
            "LLM_URL": llm,
            "OTEL_EXPORTER_OTLP_ENDPOINT": llm,
            **_OURS,
        }
        command = [sys.executable, "-m", "gateway", "serve"]
        with self.served("gateway", command, env, port, "/health/ready", cores) as served:
            yield served

    @contextmanager
    def stub(self, delay_ms: float = 0) -> Iterator[str]:
        """A model server that takes so long to answer: its URL."""
        port = free_port()
        command = [sys.executable, "-m", "bench.stub", "--port", str(port), "--delay-ms", str(delay_ms)]
        command += ["--labels", self.labels]
        with self.served("stub", command, _OURS, port, "/info", [self.other_core]):
            yield f"http://127.0.0.1:{port}"

    @contextmanager
    def floor(self) -> Iterator[Served]:
        """The bare handler."""
        port = free_port()
        command = [sys.executable, "-m", "bench.floor"]
        with self.served(
            "floor", command, {"FLOOR_PORT": str(port), **_OURS}, port, "/health/ready", [self.gateway_core]
        ) as served:
            yield served

    @contextmanager
    def served(
        self, name: str, command: Sequence[str], env: Mapping[str, str], port: int, ready: str, cores: Sequence[int]
    ) -> Iterator[Served]:
        """A server on these cores, until the end of the block."""
        began_s = time.perf_counter()
        with on_cores(cores):
            child = Child(name, command, self.home / "logs" / f"{name}-{port}.log", env)
        try:
            child.wait_ready(f"http://127.0.0.1:{port}{ready}", _READY_S)
            ready_s = time.perf_counter() - began_s
            root = psutil.Process(child.process.pid)
            yield Served(port, ready_s, [root, *root.children(recursive=True)])
        finally:
            child.stop()


@contextmanager
def ground() -> Iterator[Ground]:
    """Stores on the second core, with the shipped task in a home of its own whose request quota never runs out."""
    gateway_core, other_core, *_ = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack, on_cores([other_core]):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        home = shipped_home(folder / "home")
        server = stack.enter_context(running_postgres())
        valkey = Valkey()
        valkey.start()
        stack.callback(valkey.remove)
        database = database_of(server, "postgres")
        key, limited_key = asyncio.run(callers(database))
        tokenizer = Tokenizer.from_file(str(home / "tasks" / TASK / "adapter/tokenizer.json"))
        labels = ", ".join(f'["{label}", {tokenizer.token_to_id(label)}]' for label in "AB")
        stores = _store_processes(server, valkey)
        yield Ground(gateway_core, other_core, home, database, valkey.url, key, limited_key, stores, f"[{labels}]")


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and the processes that it starts within the block, run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """They and all that came of them."""
    return [each for process in processes for each in (process, *process.children(recursive=True))]


def move(processes: Iterable[psutil.Process], cores: Sequence[int]) -> None:
    """Running processes, with all their threads, to other cores."""
    for process in family(processes):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU time that they have used so far."""
    return float(sum(times.user + times.system for times in (each.cpu_times() for each in processes)))


def busy_s(core: int) -> float:
    """For how long a core has been at work, whoever had it do so."""
    times = psutil.cpu_times(percpu=True)[core]
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _store_processes(server: str, valkey: Valkey) -> list[psutil.Process]:
    pid = int((Path(server.partition("host=")[2]) / "data/postmaster.pid").read_text("utf-8").split()[0])
    return [psutil.Process(pid), psutil.Process(valkey.pid)]


def shipped_home(home: Path) -> Path:
    """A home with the shipped task, whose request quota never runs out."""
    for part in (f"tasks/{TASK}", f"prompts/{TASK}"):
        # A stub, which always says the same, would fail the canaries among the examples, and get no requests.
        shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns("examples.jsonl"))
    shutil.copy(ROOT / "models.toml", home)
    (home / "migrations").symlink_to(MIGRATIONS)
    task = home / "tasks" / TASK / "task.toml"
    shipped, roomy = 'limit = 6000\nper = "minute"', 'limit = 1_000_000_000\nper = "minute"'
    text = task.read_text("utf-8")
    assert shipped in text, "the shipped quota has changed"
    task.write_text(text.replace(shipped, roomy), "utf-8")
    return home


async def callers(database: str) -> tuple[str, str]:
    """A migrated database with two keys: of a team without limits, and of `LIMITED`."""
    await upgrade(database, MIGRATIONS)
    keys = [await new_key(database, team, frozenset({"invoke"})) for team in ("shop", LIMITED)]
    async with opened(database) as connected:
        await SqlTeams(connected).set_limits(LIMITED, [TeamLimit("requests", 1, "hour")])
    return keys[0], keys[1]
