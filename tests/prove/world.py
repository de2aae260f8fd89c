"""What every proof stands on: a home, stores that can die, a model server with a witness, gateways to be killed."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from fault_server import serving
from msgspec import Struct
from postgres import fresh_database, migrated_template, running_postgres
from redis.asyncio import Redis
from sqlalchemy import func, select
from stack import MANNERS, MIGRATIONS, ROOT, Gateway, llm_process, make_home
from tiny_llm import tiny_model
from tokenizers import Tokenizer

from gateway.adapters.redis import RedisSettings, RedisStore
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.migrate import upgrade
from gateway.adapters.sql.tables import inference, intent, model_call
from gateway.local.child import Child, free_port
from gateway.local.valkey import Valkey
from prove.witness import Count, Witness

MODEL = 'model = "tiny"\n'


class Check(Struct, frozen=True):
    """One line of the table: what was counted, what had to come out, and by how much it differs."""

    proof: str
    says: str
    seen: str
    difference: int


class Booked(Struct, frozen=True):
    """What the ledger says: calls, what they settled and left unsettled, their cost, open intents, recorded runs."""

    calls: int
    settled: Count
    unsettled: Count
    cost_nano: int
    intents: int
    runs: frozenset[str]


class Ground(Struct, frozen=True):
    """What the proofs share: a Postgres, a model folder, and the URL of the model server that serves it."""

    postgres: str
    model: Path
    server: str


class World(Struct):
    """`defect` is seeded in every gateway. `before` is what the model server had counted when this world began."""

    home: Path
    postgres: str
    valkey: Valkey
    model: Witness
    llm: str
    server: str
    before: Count
    defect: str = ""
    orphan_after_s: float = 20

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a gateway, and of the commands beside it."""
        return {
            "GATEWAY_HOME": str(self.home),
            "GATEWAY_DATABASE_URL": self.postgres,
            "GATEWAY_REDIS_URL": self.valkey.url,
            "LLM_URL": self.llm,
            "PROVE_DEFECT": self.defect,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        }

    def declare(self, timeout_s: float, deadline_s: float, more: str = "") -> None:
        """The task with these bounds for its model, and with `more` at its end. Orphans are swept soon after."""
        self.orphan_after_s = deadline_s + 12
        bounds = f'model = "tiny"\ntimeout_s = {timeout_s}\ndeadline_s = {deadline_s}\n'
        text = f"{MANNERS.replace(MODEL, bounds)}\n{more}"
        (self.home / "tasks/manners/task.toml").write_text(text, "utf-8")

    def gateway(self) -> Gateway:
        """Start one; it is ready when this returns. Raises ChildFailed."""
        return _ready(self._launch())

    @contextmanager
    def gateways(self, count: int) -> Iterator[list[Gateway]]:
        """So many, until the end of the block; those that a proof put in their place end too."""
        running = [self._launch() for _ in range(count)]
        try:
            for each in running:
                _ready(each)
            yield running
        finally:
            for each in running:
                each.child.process.terminate()
            for each in running:
                each.child.stop()

    def _launch(self) -> Gateway:
        port = free_port()
        sweep = {"GATEWAY_SWEEP_S": "1", "GATEWAY_ORPHAN_AFTER_S": str(self.orphan_after_s)}
        env = {"GATEWAY_PORT": str(port), "GATEWAY_LEAVE_S": "0", **sweep, **self.settings}
        log = self.home / "logs" / f"{port}.log"
        return Gateway(f"http://127.0.0.1:{port}", Child("gateway", [sys.executable, "-m", "prove.serve"], log, env))

    async def counted(self) -> Count:
        """What the model server itself says that it has counted since this world began."""
        return await self.model.at_the_server() - self.before

    async def verified(self) -> tuple[int, str]:
        """Status and words of `gateway ledger verify` against the live model server."""
        since = ("--since-input", str(self.before.input_tokens), "--since-output", str(self.before.output_tokens))
        command = ("ledger", "verify", "--model-metrics", f"{self.server}/metrics", *since)
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", *command, env={**os.environ, **self.settings, "COLUMNS": "120"},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        words, _ = await run.communicate()
        return run.returncode or 0, words.decode()

    async def booked(self) -> Booked:
        """The ledger now."""
        database = Database(self.postgres)
        try:
            async with database.begin() as connection:
                summed = ("input_tokens", "output_tokens", "cost_nano")
                sums = select(func.count(), *(func.coalesce(func.sum(model_call.c[name]), 0) for name in summed))
                settled = (await connection.execute(sums.where(model_call.c.settled))).one()
                lost = (await connection.execute(sums.where(model_call.c.settled.is_(False)))).one()
                intents = (await connection.execute(select(func.count()).select_from(intent))).scalar_one()
                runs = frozenset((await connection.execute(select(inference.c.id))).scalars())
                counts = [Count(*map(int, found[:3])) for found in (settled, lost)]
                return Booked(settled[0] + lost[0], *counts, int(settled[3] + lost[3]), intents, runs)
        finally:
            await database.aclose()

    async def open_reservations(self) -> int:
        """Reservations that nobody has settled."""
        store = RedisStore(RedisSettings(url=self.valkey.url))
        try:
            return len(await store.open_reservations(0))
        finally:
            await store.close()

    async def budget_used(self) -> int:
        """What the store says is used of the one budget of cost, in nano-units."""
        async with Redis.from_url(self.valkey.url) as redis:
            names = [name async for name in redis.scan_iter("tg:q:cost:month:*") if b":near:" not in name]
            return sum([int(await redis.get(name)) for name in names])

    async def settled_down(self, patience_s: float = 60) -> Booked:
        """The ledger when nothing is under way any more, or when patience ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        while True:
            booked = await self.booked()
            if (booked.intents == 0 and await self.open_reservations() == 0) or loop.time() > end:
                return booked
            await asyncio.sleep(0.5)


def _ready(each: Gateway) -> Gateway:
    each.child.wait_ready(f"{each.url}/health/ready", 90)
    return each


def kill(pid: int) -> None:
    """SIGKILL, as a crash would."""
    os.kill(pid, signal.SIGKILL)


@contextmanager
def ground() -> Iterator[Ground]:
    """A Postgres and a model server, the tiny random one that the tests have too."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder, running_postgres() as postgres:
        model = tiny_model(Path(folder) / "model")
        with llm_process(model, Path(folder) / "llm.log") as (server, _):
            yield Ground(postgres, model, server)


@asynccontextmanager
async def world(on: Ground, defect: str = "") -> AsyncIterator[World]:
    """Everything but the gateways, with a database, a Valkey and a witness of its own."""
    template = await migrated_template(on.postgres, lambda url: upgrade(url, MIGRATIONS))
    tokenizer = on.model / "tokenizer.json"
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        home = make_home(Path(folder), tokenizer)
        model, valkey = Witness(Tokenizer.from_file(str(tokenizer)), on.server), Valkey()
        valkey.start()
        try:
            async with fresh_database(on.postgres, template) as database, serving(model) as llm:
                before = await model.at_the_server()
                yield World(home, database, valkey, model, llm, on.server, before, defect)
        finally:
            await model.aclose()
            valkey.remove()
