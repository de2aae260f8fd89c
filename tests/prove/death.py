"""Random death under load: the model's count stays between what is settled and what is settled or lost."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Sequence

import httpx
from budgets import ask, message
from fault_server import hang, hang_up
from postgres import restart
from stack import Gateway

from gateway.adapters.sql.access import new_key
from prove.world import Check, World, kill

BUDGET = '[[quota]]\nresource = "cost"\nlimit = "1000.00"\nper = "month"\nscope = ["task"]\n'
# Killing a gateway costs seconds of start-up, so it comes up less often than the rest.
DEATHS = ("clients", "model", "model", "valkey", "clients", "model", "valkey", "postgres", "gateway")
REQUESTS = 16


async def prove_death(world: World, rounds: int, seconds: float, seed: int) -> Sequence[Check]:
    """At most so many rounds, for at most so long."""
    dice, started = random.Random(seed), time.monotonic()
    task = world.home / "tasks/manners/task.toml"
    task.write_text(f"{task.read_text('utf-8')}\n{BUDGET}", "utf-8")
    key = await new_key(world.postgres, "shop", frozenset({"invoke"}))
    given: list[str] = []
    done, deaths = 0, dict.fromkeys(dict.fromkeys(DEATHS), 0)
    with world.gateways(2) as up:
        while done < rounds and time.monotonic() - started < seconds:
            death = dice.choice(DEATHS)
            given += await _round(world, up, key, done, death, dice)
            deaths[death] += 1
            done += 1
        booked = await world.settled_down()
        open_after = await world.open_reservations()
    counted, most = world.counted_tokens(), booked.settled + booked.unsettled
    name = "2 random death"
    died = ", ".join(f"{count} {what}" for what, count in deaths.items())
    gap = f"{booked.settled} ≤ {counted} ≤ {most} (gap {most - booked.settled})"
    return [
        Check(name, f"rounds (seed {seed}): {died}", str(done), 0 if done else 1),
        Check(name, "settled ≤ tokens at the model", gap, max(0, booked.settled - counted)),
        Check(name, "tokens at the model ≤ settled + unsettled", gap, max(0, counted - most)),
        Check(name, "reservations and intents left", f"{open_after} + {booked.intents}", open_after + booked.intents),
        Check(name, "answers without a row", f"of {len(given)}", len(set(given) - booked.runs)),
    ]


async def _round(world: World, up: list[Gateway], key: str, number: int, death: str, dice: random.Random) -> list[str]:
    """The runs that were answered while something died."""
    if death == "model":
        world.model.script.extend([dice.choice((hang, hang_up)), hang_up])
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(each.client(key)) for each in up]
        numbers = [number * REQUESTS + i for i in range(REQUESTS)]
        asked = [asyncio.create_task(_run_id(clients[n % 2], message(n))) for n in numbers]
        await asyncio.sleep(dice.uniform(0, 0.15))
        await _die(world, up, asked, death, dice)
        said = await asyncio.gather(*asked, return_exceptions=True)
    world.model.script.clear()
    return [run_id for run_id in said if isinstance(run_id, str)]


async def _run_id(client: httpx.AsyncClient, text: str) -> str | None:
    with contextlib.suppress(httpx.HTTPError):
        response, metadata = await ask(client, text)
        return metadata.get("run_id") if response.status_code == 200 else None
    return None


async def _die(
    world: World, up: list[Gateway], asked: list["asyncio.Task[str | None]"], death: str, dice: random.Random
) -> None:
    match death:
        case "clients":
            for each in dice.sample(asked, REQUESTS // 2):
                each.cancel()
        case "valkey":
            kill(world.valkey.pid)
            world.valkey.start()
        case "postgres":
            await asyncio.to_thread(restart, world.postgres)
        case "gateway":
            place = dice.randrange(len(up))
            # The server is a parent and its worker, in a group of their own.
            os.killpg(up[place].child.process.pid, signal.SIGKILL)
            up[place].child.process.wait()
            up[place] = await asyncio.to_thread(world.gateway)
