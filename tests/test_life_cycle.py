"""How gateways come and go: a stopping one loses nothing, two that are restarted in turn are never both away."""

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fault_server import FaultServer, hang, held_until, serving
from sqlalchemy import func, select
from stack import MANNERS, Gateway, gateway

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import inference, intent

INVOKE = "/tasks/manners/invoke"
LOOK_S = 0.1
"""How often the balancer asks who is ready."""
LEAVE_S = 6.0
"""How long a gateway that was told to stop serves on: enough to look at it on a busy machine."""
PATIENCE_S = 60.0
"""More than anything takes that ends at all."""


async def ask(client: httpx.AsyncClient, message: str) -> httpx.Response:
    return await client.post(INVOKE, json={"input": {"message": message}})


async def rows(url: str, query: Any) -> list[Any]:
    database = Database(url)
    try:
        async with database.begin() as connection:
            return list((await connection.execute(query)).scalars())
    finally:
        await database.aclose()


async def ended(up: Gateway) -> int:
    """The status of a process that was told to stop."""
    return await asyncio.to_thread(up.child.process.wait, PATIENCE_S)


async def closed(port: int) -> None:
    """Wait until nobody listens there any more; each look is a connection."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(LOOK_S / 10)


async def test_a_stopping_gateway_serves_until_it_leaves_and_loses_no_row(
    home: Path, database: str, valkey: str, model: FaultServer
) -> None:
    """Not ready at once, still answering; what is under way when the listener closes ends; every row is written."""
    key = await new_key(database, "shop", frozenset({"invoke"}))
    think = asyncio.Event()
    model.script.append(held_until(think))
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm, leave_s=str(LEAVE_S), ledger="relaxed") as up:
            async with up.client(key) as client, up.client(key) as waiting:
                under_way = asyncio.create_task(ask(waiting, "Under way"))
                await asyncio.wait_for(model.hung.wait(), PATIENCE_S)
                told = time.monotonic()
                up.child.process.terminate()
                while (said := await client.get("/health/ready")).status_code == 200:
                    assert time.monotonic() - told < LEAVE_S / 2
                assert said.json()["status"] == "draining"
                answered = [(await ask(client, f"Thank you {i}")).json()["metadata"]["run_id"] for i in range(20)]
                await closed(int(up.url.rsplit(":", 1)[1]))
                assert time.monotonic() - told >= LEAVE_S - LOOK_S
                think.set()
                last = (await under_way).json()["metadata"]
            assert await ended(up) == 0
    assert last["stage"] == "llm"
    assert set(await rows(database, select(inference.c.id))) == {*answered, last["run_id"]}
    assert await rows(database, select(intent.c.id)) == []


async def test_what_hangs_does_not_hold_up_the_end(home: Path, database: str, valkey: str, model: FaultServer) -> None:
    """A model that never answers, a client that never finishes its request: the process ends all the same, in time."""
    patient = MANNERS.replace("min_label_mass = 0.0", "min_label_mass = 0.0\ntimeout_s = 600\ndeadline_s = 600")
    (home / "tasks/manners/task.toml").write_text(patient, "utf-8")
    key = await new_key(database, "shop", frozenset({"invoke"}))
    model.script.append(hang)
    async with serving(model) as llm:
        with gateway(home, database, valkey, llm, drain_s="1", orphan_after_s="1200") as up:
            _, writer = await asyncio.open_connection("127.0.0.1", int(up.url.rsplit(":", 1)[1]))
            writer.write(b"POST /tasks/manners/invoke HTTP/1.1\r\nhost: x\r\n")
            async with up.client(key) as client:
                under_way = asyncio.create_task(ask(client, "Never answered"))
                await asyncio.wait_for(model.hung.wait(), PATIENCE_S)
                up.child.process.terminate()
                await ended(up)
                with pytest.raises(httpx.TransportError):
                    await under_way
            writer.close()
    assert len(await rows(database, select(intent.c.id))) == 1, "the sweeper of another process settles it"


class Balancer:
    """Sends each request to a replica that said that it is ready, over a connection of its own.

    Only a refused connection is tried elsewhere: nothing was sent over it. Any other failure is a lost request.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self.urls: list[str] = []
        self._ready: list[str] = []
        self._turn = 0

    async def follow(self) -> None:
        """Ask all replicas, until cancelled."""
        async with httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_keepalive_connections=0)) as client:
            while True:
                self._ready = [url for url in self.urls if await _is_ready(client, url)]
                await asyncio.sleep(LOOK_S)

    async def send(self, message: str) -> httpx.Response:
        """Raises whatever loses the request."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self._turn += 1
            targets = self._ready or self.urls
            url = targets[self._turn % len(targets)]
            headers = {"authorization": f"Bearer {self._key}"}
            try:
                async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S) as client:
                    return await ask(client, message)
            except httpx.ConnectError:
                await asyncio.sleep(LOOK_S)
        raise AssertionError("nobody listens")


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_rolling_restart_under_load_loses_no_request(
    home: Path, database: str, valkey: str, model: FaultServer
) -> None:
    """Two replicas are replaced one after the other while clients ask: every request is answered 200, and recorded."""
    key = await new_key(database, "shop", frozenset({"invoke"}))
    balancer, answers, stop = Balancer(key), list[httpx.Response](), asyncio.Event()

    async def load(number: int) -> None:
        for i in range(10_000):
            if stop.is_set():
                return
            text = f"Thank you {number} {i}" if i % 4 else f"Something for the model {number} {i}"
            answers.append(await balancer.send(text))

    async with serving(model) as llm:
        with ExitStack() as stack:

            def start() -> Gateway:
                return stack.enter_context(gateway(home, database, valkey, llm, leave_s=str(LEAVE_S)))

            up = [await asyncio.to_thread(start), await asyncio.to_thread(start)]
            balancer.urls = [each.url for each in up]
            following = asyncio.create_task(balancer.follow())
            loading = [asyncio.create_task(load(number)) for number in range(8)]
            try:
                await _grows(answers, 50)
                for old in list(up):
                    new = await asyncio.to_thread(start)
                    balancer.urls.append(new.url)
                    await _grows(answers, 50)
                    old.child.process.terminate()
                    assert await ended(old) == 0
                    balancer.urls.remove(old.url)
                    await _grows(answers, 50)
            finally:
                stop.set()
                await asyncio.gather(*loading)
                following.cancel()
    assert {response.status_code for response in answers} == {200}
    runs = {response.json()["metadata"]["run_id"] for response in answers}
    assert len(runs) == len(answers)
    assert await rows(database, select(func.count()).select_from(inference)) == [len(runs)]


async def _grows(answers: list[httpx.Response], by: int) -> None:
    """Wait for so many more answers: the load is the clock."""
    wanted = len(answers) + by
    until = time.monotonic() + PATIENCE_S
    while len(answers) < wanted:
        assert time.monotonic() < until, "the load stands still"
        await asyncio.sleep(LOOK_S)
