"""What happens to a gateway that is under load. Each takes `seconds`, and leaves everything whole again."""

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from fault_server import Behaviour, hang, rubbish
from msgspec import Struct
from postgres import restart
from prove.witness import Witness, forward
from prove.world import World, kill

CONNECTIONS = 10_000


class Stage(Struct):
    """What can be broken: the world, both replicas of its model, the clock of its gateways. `notes` go to the table."""

    world: World
    models: list[Witness]
    clock: Path
    port: int
    seconds: float
    notes: list[str]


async def calm(on: Stage) -> None:
    """Nothing happens."""
    await asyncio.sleep(on.seconds)


async def _misbehave(on: Stage, models: list[Witness], behaviour: Behaviour) -> None:
    for model in models:
        model.usual = behaviour
    await asyncio.sleep(on.seconds)
    for model in models:
        # Whoever hangs is let go, as by a server that was started anew.
        gone, model.gone = model.gone, asyncio.Event()
        gone.set()
        model.usual = forward


def _cut(_server: object, _seen: object, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def one_replica_dies(on: Stage) -> None:
    """One of two resets every connection."""
    await _misbehave(on, on.models[:1], _cut)


async def both_replicas_die(on: Stage) -> None:
    """The model is gone altogether."""
    await _misbehave(on, on.models, _cut)


async def replicas_take_30_s(on: Stage) -> None:
    """Every answer takes longer than anybody waits."""
    await _misbehave(on, on.models, hang)


async def replicas_answer_garbage(on: Stage) -> None:
    """200, and nothing that makes sense."""
    await _misbehave(on, on.models, rubbish(b'{"it": "works"}'))


async def store_stalls(on: Stage) -> None:
    """SIGSTOP: connections stay open, and nothing comes."""
    os.kill(on.world.valkey.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(on.seconds)
    finally:
        os.kill(on.world.valkey.pid, signal.SIGCONT)


async def store_dies(on: Stage) -> None:
    """SIGKILL, some time without, and a new empty one."""
    kill(on.world.valkey.pid)
    await asyncio.sleep(on.seconds / 2)
    await asyncio.to_thread(on.world.valkey.start)
    await asyncio.sleep(on.seconds / 2)


async def database_restarts(on: Stage) -> None:
    """As after a crash."""
    await asyncio.sleep(on.seconds / 3)
    await asyncio.to_thread(restart, on.world.postgres)
    await asyncio.sleep(on.seconds / 2)


async def clock_jumps(on: Stage) -> None:
    """An hour ahead, a day back, and right again."""
    for jump in ("3600", "-86400", "0"):
        on.clock.write_text(jump, "utf-8")
        await asyncio.sleep(on.seconds / 3)


async def clients_drip(on: Stage) -> None:
    """Fifty clients send a byte a second."""

    async def drip() -> None:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", on.port)
            for byte in b"POST /tasks/manners/invoke HTTP/1.1\r\nhost: x\r\n"[: int(on.seconds)]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
            writer.close()

    await asyncio.gather(*(drip() for _ in range(50)))


async def many_connect(on: Stage) -> None:
    """10,000 connections that say nothing, or as many as this machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    open_: list[asyncio.StreamWriter] = []
    wanted = min(CONNECTIONS, hard - 500)
    try:
        while len(open_) < wanted:
            few = (asyncio.open_connection("127.0.0.1", on.port) for _ in range(min(200, wanted - len(open_))))
            made = await asyncio.gather(*few, return_exceptions=True)
            refused = [each for each in made if isinstance(each, BaseException)]
            open_ += [each[1] for each in made if not isinstance(each, BaseException)]
            if refused:
                on.notes.append(f"refused: {type(refused[0]).__name__}")
                break
        on.notes.append(f"{len(open_):,} connections")
        await asyncio.sleep(on.seconds)
    finally:
        for writer in open_:
            writer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


EVENTS: dict[str, Callable[[Stage], Awaitable[None]]] = {
    "nothing happens": calm,
    "one of two replicas dies": one_replica_dies,
    "both replicas die": both_replicas_die,
    "replicas take 30 s": replicas_take_30_s,
    "replicas answer garbage": replicas_answer_garbage,
    "Valkey is paused": store_stalls,
    "Valkey is killed": store_dies,
    "Postgres restarts": database_restarts,
    "the clock jumps": clock_jumps,
    "clients drip": clients_drip,
    "10,000 connections": many_connect,
}
