"""Two gateways, 64 clients, a budget for exactly N model calls: exactly N reach the model, and all are recorded."""

import asyncio
from collections.abc import Sequence
from typing import Any

from budgets import SLACK_NANO, ask, limit_team, message

from gateway.adapters.sql.access import new_key
from gateway.core.prices import from_nano, to_nano
from prove.death import witnessed
from prove.world import Check, World

CLIENTS = 64


async def prove_budget(world: World, calls: int = 100, requests: int = 480) -> Sequence[Check]:
    """Every second request is one that a rule answers. Every answer must have its row."""
    # Nothing may be lost here, however slow the machine is.
    world.declare(timeout_s=30, deadline_s=60)
    key = await new_key(world.postgres, "shop", frozenset({"invoke", "admin"}))
    with world.gateways(2) as up:
        async with up[0].client(key) as one, up[1].client(key) as two:
            _, first = await ask(one, message(0))
            price = to_nano(first["usage"]["cost"])
            budget = {"resource": "cost", "limit": from_nano(calls * price + SLACK_NANO), "per": "month"}
            await limit_team(up, key, "shop", budget)
            numbers = iter(range(1, requests))
            said: list[dict[str, Any]] = [first]

            async def client(number: int) -> None:
                for position in numbers:
                    text = message(position) if position % 2 else f"Thank you {position}"
                    said.append((await ask((one, two)[number % 2], text))[1])

            await asyncio.gather(*map(client, range(CLIENTS)))
            # What was held at its estimate while others asked is free again: it is used, and then there is no more.
            last: dict[str, Any] = {}
            while last.get("reason") != "budget_exceeded" and len(world.model.asked) < 2 * calls:
                _, last = await ask(one, message(requests + len(said)))
                said.append(last)
        at_once = await world.open_reservations()
        booked, counted, used = await world.booked(), await world.counted(), await world.budget_used()
        verified, _ = await world.verified()
    cheap = [metadata for metadata in said if metadata.get("stage") == "rules"]
    given = [metadata["run_id"] for metadata in said if metadata.get("run_id")]
    name = "1 exact budget"
    asked = counted.requests
    return [
        Check(name, f"calls at the model, of {calls} that the budget covers", str(asked), asked - calls),
        Check(name, "calls in the ledger", str(booked.calls), booked.calls - calls),
        *witnessed(name, world.model.counted, counted, booked),
        Check(name, "`ledger verify --model-metrics`", f"status {verified}", verified),
        Check(name, "the budget's counter = the ledger", f"{used:,}", used - booked.cost_nano),
        Check(name, "requests that a cheap stage answered", str(len(cheap)), len(cheap) - (requests - 1) // 2),
        Check(name, "answers without a row", f"of {len(given)}", len(set(given) - booked.runs)),
        Check(name, "reservations left", str(at_once), at_once),
    ]


async def prove_cache(world: World) -> Sequence[Check]:
    """An answer of the old prompt is not served by a gateway with the new one."""
    key = await new_key(world.postgres, "shop", frozenset({"invoke"}))
    statuses = []
    for prompt in ("Is it rude?", "Is it very rude?"):
        (world.home / "prompts/manners/ask.v1.md").write_text(f"{prompt}\n---\n{{{{message}}}}\n", "utf-8")
        with world.gateways(1) as (up,):
            async with up.client(key) as client:
                statuses += [(await ask(client, message(0)))[0].headers["x-gateway-cache"] for _ in range(2)]
    wrong = sum(seen != wanted for seen, wanted in zip(statuses, ("miss", "hit") * 2, strict=True))
    return [Check("6 cache", "answers of an older prompt", " ".join(statuses), wrong)]
