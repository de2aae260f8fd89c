"""What every proof stands on: a home, stores that can die, a model that counts, gateways that can be killed."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from budgets import counting_model
from fault_server import FaultServer
from msgspec import Struct
from postgres import running_postgres
from sqlalchemy import func, select
from stack import MIGRATIONS, ROOT, Gateway, make_home
from tiny_llm import _tokenizer

from gateway.adapters.redis import RedisSettings, RedisStore
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.migrate import upgrade
from gateway.adapters.sql.tables import inference, intent, model_call
from gateway.local.child import Child, free_port
from gateway.local.valkey import Valkey


class Check(Struct, frozen=True):
    """One line of the table: what was counted, what had to come out, and by how much it differs."""

    proof: str
    says: str
    seen: str
    difference: int


class Booked(Struct, frozen=True):
    """What the ledger says: calls, input tokens settled and unsettled, open intents, recorded runs."""

    calls: int
    settled: int
    unsettled: int
    intents: int
    runs: frozenset[str]


class World(Struct):
    """`defect` is seeded in every gateway."""

    home: Path
    postgres: str
    valkey: Valkey
    model: FaultServer
    llm: str
    defect: str = ""

    def gateway(self) -> Gateway:
        """Start one; it is ready when this returns."""
        port = free_port()
        env = {
            "GATEWAY_HOME": str(self.home),
            "GATEWAY_DATABASE_URL": self.postgres,
            "GATEWAY_REDIS_URL": self.valkey.url,
            "GATEWAY_PORT": str(port),
            "GATEWAY_SWEEP_S": "1",
            "GATEWAY_ORPHAN_AFTER_S": "12",
            "LLM_URL": self.llm,
            "PROVE_DEFECT": self.defect,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        }
        log = self.home / "logs" / f"{port}.log"
        child = Child("gateway", [sys.executable, "-m", "prove.serve"], log, env)
        child.wait_ready(f"http://127.0.0.1:{port}/health/ready", 90)
        return Gateway(f"http://127.0.0.1:{port}", child)

    @contextmanager
    def gateways(self, count: int) -> Iterator[list[Gateway]]:
        """So many, until the end of the block; those that a proof put in their place end too."""
        running: list[Gateway] = []
        try:
            for _ in range(count):
                running.append(self.gateway())
            yield running
        finally:
            for each in running:
                each.child.stop()

    def counted_tokens(self) -> int:
        """Input tokens that reached the model, by its own tokeniser."""
        return sum(len(self.model.tokenizer.encode(seen.body["inputs"]).ids) for seen in self.model.asked)

    async def booked(self) -> Booked:
        """The ledger now."""
        database = Database(self.postgres)
        try:
            async with database.begin() as connection:
                tokens = func.coalesce(func.sum(model_call.c.input_tokens), 0)
                calls = (await connection.execute(select(func.count()).select_from(model_call))).scalar_one()
                settled = (await connection.execute(select(tokens).where(model_call.c.settled))).scalar_one()
                lost = (await connection.execute(select(tokens).where(model_call.c.settled.is_(False)))).scalar_one()
                intents = (await connection.execute(select(func.count()).select_from(intent))).scalar_one()
                runs = frozenset((await connection.execute(select(inference.c.id))).scalars())
                return Booked(calls, int(settled), int(lost), intents, runs)
        finally:
            await database.aclose()

    async def open_reservations(self) -> int:
        """Reservations that nobody has settled."""
        store = RedisStore(RedisSettings(url=self.valkey.url))
        try:
            return len(await store.open_reservations(0))
        finally:
            await store.close()

    async def settled_down(self, patience_s: float = 60) -> Booked:
        """The ledger when nothing is under way any more, or when patience ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        while True:
            booked = await self.booked()
            if (booked.intents == 0 and await self.open_reservations() == 0) or loop.time() > end:
                return booked
            await asyncio.sleep(0.5)


def kill(pid: int) -> None:
    """SIGKILL, as a crash would."""
    os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def world(defect: str = "") -> AsyncIterator[World]:
    """Everything but the gateways, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder, running_postgres() as server:
        model_folder = Path(folder) / "model"
        model_folder.mkdir()
        _tokenizer(model_folder)
        await upgrade(server, MIGRATIONS)
        home = make_home(Path(folder) / "home", model_folder / "tokenizer.json")
        valkey = Valkey()
        valkey.start()
        try:
            async with counting_model(model_folder) as (model, llm):
                yield World(home, server, valkey, model, llm, defect)
        finally:
            valkey.remove()
