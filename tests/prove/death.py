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
from fault_server import hang_up
from msgspec import Struct, field
from postgres import restart
from stack import Gateway

from gateway.adapters.sql.access import new_key
from prove.witness import FAULTS, Count
from prove.world import Booked, Check, World, kill

BUDGET = '[[quota]]\nresource = "cost"\nlimit = "1000.00"\nper = "month"\nscope = ["task"]\n'
# What costs more time comes up less often.
DEATHS = ("clients", "clients", "model", "model", "valkey", "valkey", "postgres", "gateway")
REQUESTS = 16


class Fleet(Struct):
    """Gateways that serve, and those that come up in the place of dead ones meanwhile."""

    world: World
    up: list[Gateway]
    coming: list["asyncio.Task[Gateway]"] = field(default_factory=list)

    async def kill_one(self, dice: random.Random) -> None:
        """The whole process group at once; never the last one that serves."""
        if len(self.up) < 2:
            await self.arrive(whoever=True)
        victim = self.up.pop(dice.randrange(len(self.up)))
        # The server is a parent and its worker, in a group of their own.
        os.killpg(victim.child.process.pid, signal.SIGKILL)
        victim.child.process.wait()
        self.coming.append(asyncio.create_task(asyncio.to_thread(self.world.gateway)))

    async def arrive(self, *, whoever: bool = False) -> None:
        """Take in those that are ready; wait for them all with `whoever`."""
        if whoever and self.coming:
            await asyncio.wait(self.coming)
        ready = [each for each in self.coming if each.done()]
        self.coming = [each for each in self.coming if not each.done()]
        self.up += [each.result() for each in ready]


async def prove_death(
    world: World, rounds: int, seconds: float, seed: int, deaths: Sequence[str] = DEATHS, patience_s: float = 60
) -> Sequence[Check]:
    """At most so many rounds, for at most so long."""
    dice, started = random.Random(seed), time.monotonic()
    # A model that hangs is given up soon, so that rounds of it are short.
    world.declare(timeout_s=1.0, deadline_s=2.0, more=BUDGET)
    key = await new_key(world.postgres, "shop", frozenset({"invoke"}))
    given: list[str] = []
    done, died = 0, dict.fromkeys(deaths, 0)
    with world.gateways(2) as up:
        fleet = Fleet(world, up)
        while done < rounds and time.monotonic() - started < seconds:
            death = dice.choice(deaths)
            given += await _round(fleet, key, done, death, dice)
            await fleet.arrive()
            died[death] += 1
            done += 1
        await fleet.arrive(whoever=True)
        booked = await world.settled_down(patience_s)
        open_after = await world.open_reservations()
        counted = await world.counted()
        verified, words = await world.verified()
    of = ", ".join(f"{count} {what}" for what, count in died.items())
    took = f"{done} in {time.monotonic() - started:.0f} s"
    name = "2 random death"
    if verified:
        print(words)
    return [
        Check(name, f"rounds (seed {seed}): {of}", took, rounds - done),
        *witnessed(name, world.model.counted, counted, booked),
        Check(name, "`ledger verify --model-metrics`", f"status {verified}", verified),
        Check(name, "reservations and intents left", f"{open_after} + {booked.intents}", open_after + booked.intents),
        Check(name, "answers without a row", f"of {len(given)}", len(set(given) - booked.runs)),
    ]


def witnessed(name: str, proxy: Count, server: Count, booked: Booked) -> Sequence[Check]:
    """Settled ≤ the proxy's count = the server's own ≤ settled + unsettled, for requests' prompts and for answers."""
    most = booked.settled + booked.unsettled
    same = abs(proxy.requests - server.requests)
    checks = [Check(name, "requests: proxy = server's own", f"{proxy.requests:,} = {server.requests:,}", same)]
    for way in ("input_tokens", "output_tokens"):
        low, seen, own, high = (getattr(each, way) for each in (booked.settled, proxy, server, most))
        line = f"{low:,} ≤ {seen:,} = {own:,} ≤ {high:,} (gap {high - low:,})"
        off = max(0, low - seen) + abs(seen - own) + max(0, own - high)
        checks.append(Check(name, f"{way}: settled ≤ proxy = server's own ≤ settled + unsettled", line, off))
    return checks


async def _round(fleet: Fleet, key: str, number: int, death: str, dice: random.Random) -> list[str]:
    """The runs that were answered while something died."""
    model = fleet.world.model
    if death == "model":
        model.script.extend([dice.choice(FAULTS), dice.choice(FAULTS), hang_up])
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(each.client(key)) for each in fleet.up]
        numbers = [number * REQUESTS + i for i in range(REQUESTS)]
        asked = [asyncio.create_task(_run_id(clients[n % len(clients)], message(n))) for n in numbers]
        await asyncio.sleep(dice.uniform(0, 0.15))
        await _die(fleet, asked, death, dice)
        said = await asyncio.gather(*asked, return_exceptions=True)
    model.script.clear()
    return [run_id for run_id in said if isinstance(run_id, str)]


async def _run_id(client: httpx.AsyncClient, text: str) -> str | None:
    with contextlib.suppress(httpx.HTTPError):
        response, metadata = await ask(client, text)
        return metadata.get("run_id") if response.status_code == 200 else None
    return None


async def _die(fleet: Fleet, asked: list["asyncio.Task[str | None]"], death: str, dice: random.Random) -> None:
    match death:
        case "clients":
            for each in dice.sample(asked, REQUESTS // 2):
                each.cancel()
        case "valkey":
            kill(fleet.world.valkey.pid)
            fleet.world.valkey.start()
        case "postgres":
            await asyncio.to_thread(restart, fleet.world.postgres)
        case "gateway":
            await fleet.kill_one(dice)
