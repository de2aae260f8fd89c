"""Random death under load: the model's count stays between what is settled and what is settled or lost."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence

from fault_server import hang_up
from msgspec import Struct
from postgres import restart

from gateway.adapters.sql.access import new_key
from prove.load import Fleet, Load
from prove.witness import FAULTS, Count
from prove.world import Booked, Check, World, kill

BUDGET = '[[quota]]\nresource = "cost"\nlimit = "1000.00"\nper = "month"\nscope = ["task"]\n'
# What costs more time comes up less often.
DEATHS = ("clients", "clients", "model", "model", "valkey", "valkey", "postgres", "gateway")
GATEWAYS = 3
# So many calls reach the model after each death before the next one comes.
CALLS = 8
# Where so few reach it for so long, something is broken for good.
ROUND_S = 60.0


class Died(Struct):
    """How often something died, and the seconds that its rounds took."""

    times: int = 0
    seconds: float = 0.0


async def prove_death(
    world: World, rounds: int, seconds: float, seed: int, deaths: Sequence[str] = DEATHS, patience_s: float = 60
) -> Sequence[Check]:
    """At most so many rounds, for at most so long."""
    dice, started = random.Random(seed), time.monotonic()
    # A model that hangs is given up soon.
    world.declare(timeout_s=1.0, deadline_s=2.0, more=BUDGET)
    key = await new_key(world.postgres, "shop", frozenset({"invoke"}))
    died = {death: Died() for death in deaths}
    with world.gateways(GATEWAYS) as up:
        fleet = Fleet(world, up)
        load = Load(fleet, key, dice)
        async with load.running():
            with contextlib.suppress(TimeoutError):
                while _rounds(died) < rounds and time.monotonic() - started < seconds:
                    await _round(fleet, load, died, deaths, dice)
        world.model.script.clear()
        await fleet.whole()
        booked = await world.settled_down(patience_s)
        open_after = await world.open_reservations()
        counted, used = await world.counted(), await world.budget_used()
        verified, words = await world.verified()
    if verified:
        print(words)
    name, done = "2 random death", _rounds(died)
    of = ", ".join(f"{each.times} {what} ({each.seconds / max(1, each.times):.2f} s)" for what, each in died.items())
    return [
        Check(name, f"rounds (seed {seed}): {of}", str(done), rounds - done),
        *witnessed(name, world.model.counted, counted, booked),
        Check(name, "`ledger verify --model-metrics`", f"status {verified}", verified),
        Check(name, "reservations and intents left", f"{open_after} + {booked.intents}", open_after + booked.intents),
        Check(name, "the budget's counter = the ledger", f"{used:,}", used - booked.cost_nano),
        Check(name, "answers without a row", f"of {len(load.given):,}", len(set(load.given) - booked.runs)),
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


def _rounds(died: dict[str, Died]) -> int:
    return sum(each.times for each in died.values())


async def _round(fleet: Fleet, load: Load, died: dict[str, Died], deaths: Sequence[str], dice: random.Random) -> None:
    """One death at a random moment of the load, and then work again. Raises TimeoutError where there is none."""
    began, death = time.monotonic(), dice.choice(deaths)
    async with asyncio.timeout(ROUND_S):
        await asyncio.sleep(dice.uniform(0, 0.1))
        await _die(fleet, load, death, dice)
        await fleet.world.model.more(CALLS)
    fleet.arrive()
    died[death].times += 1
    died[death].seconds += time.monotonic() - began


async def _die(fleet: Fleet, load: Load, death: str, dice: random.Random) -> None:
    world = fleet.world
    match death:
        case "clients":
            load.cancel_half()
        case "model":
            world.model.script.extend([dice.choice(FAULTS), dice.choice(FAULTS), hang_up])
        case "valkey":
            kill(world.valkey.pid)
            world.valkey.start()
        case "postgres":
            await asyncio.to_thread(restart, world.postgres)
        case "gateway":
            await fleet.kill_one(dice)
