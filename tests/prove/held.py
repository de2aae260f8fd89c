"""Held messages while everything dies at random: whatever comes in is delivered, blocked, or held and settled once."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout
from msgspec import Struct, field
from postgres import restart
from reviewers import CALLER, OWNER, SETTINGS, Desk, Receiver, make_home, review_until_done
from sqlalchemy import func, select, update
from stack import Gateway, gateway

from gateway.adapters.sql.access import new_key, opened
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.tables import inference, review, review_event, review_item, webhook_message
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.core.clock import Clock
from gateway.core.reviews import WAITING, state_of
from gateway.core.webhooks import Webhook, new_secret
from gateway.local.valkey import Valkey
from prove.world import Check, kill

# What costs more time comes up less often.
DEATHS = ("gateway", "valkey", "valkey", "postgres")
WORDS = ("thanks", "silly", "silly", "awful")
CALLERS, REVIEWERS, AT_ONCE = 3, 8, 10
NAME = "8 held messages"
_run, _item, _event, _message = inference.c, review_item.c, review_event.c, webhook_message.c


class Fleet(Struct):
    """Two gateways; for one that was killed another comes up."""

    home: Path
    database: str
    valkey: Valkey
    stack: contextlib.ExitStack
    up: list[Gateway] = field(default_factory=list)

    async def add(self) -> None:
        """One more."""
        started = gateway(self.home, self.database, self.valkey.url, "http://127.0.0.1:1", **SETTINGS)
        self.up.append(await asyncio.to_thread(self.stack.enter_context, started))

    async def die(self, what: str, dice: random.Random) -> None:
        """SIGKILL, and the next one in its place."""
        if what == "valkey":
            kill(self.valkey.pid)
            await asyncio.to_thread(self.valkey.start)
        elif what == "postgres":
            await asyncio.to_thread(restart, self.database)
        else:
            victim = self.up.pop(dice.randrange(len(self.up)))
            # The server is a parent and its worker, in a group of their own.
            os.killpg(victim.child.process.pid, signal.SIGKILL)
            await self.add()


class Told(Struct):
    """What callers were answered: the action of each run. `stopped`: nobody asks any more."""

    actions: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


class Count(Struct, frozen=True):
    """The books at one instant: runs by action, and held runs by what became of their item."""

    actions: Mapping[str, int]
    states: Mapping[str, int]

    @property
    def off(self) -> int:
        """By how much they do not reconcile."""
        unknown = sum(n for action, n in self.actions.items() if action not in ("deliver", "review", "block"))
        return unknown + abs(self.actions.get("review", 0) - sum(self.states.values()))


async def prove_held(postgres: str, valkey: Valkey, folder: Path, kills: int, seed: int) -> Sequence[Check]:
    """So many deaths under load; the books are looked at after each, and once all is settled."""
    dice, told, started = random.Random(seed), Told(), time.monotonic()
    receiver = Receiver(secret := new_secret(), 0)
    key = await new_key(postgres, CALLER, frozenset({"invoke"}))
    keys = [await new_key(postgres, OWNER, frozenset({"review"})) for _ in range(REVIEWERS)]
    died: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        fleet = Fleet(make_home(folder), postgres, valkey, stack)
        await fleet.add()
        await fleet.add()
        async with receiver.listening() as hook, opened(postgres) as database, _client() as client:
            await SqlWebhooks(database).put(Webhook(CALLER, hook, secret, Clock(new_id=str).now()))
            desk = Desk(fleet.up, 0)
            reviewing = asyncio.gather(*(_review(desk, client, k, n, told) for n, k in enumerate(keys)))
            asking = asyncio.gather(*(_ask(fleet, client, key, told, n) for n in range(CALLERS)))
            off = 0
            for _ in range(kills):
                await _busy(told)
                death = dice.choice(DEATHS)
                await fleet.die(death, dice)
                died[death] += 1
                await _time_passes(postgres)
                off += (await _count(postgres)).off
            told.stopped = True
            await asking
            await reviewing
            await asyncio.gather(*(review_until_done(desk, client, k, n) for n, k in enumerate(keys)))
            await _sent(postgres)
        after = await _count(postgres)
        wrong = await _wrong(postgres, told, receiver)
    of = ", ".join(f"{count} {what}" for what, count in sorted(died.items()))
    seen = {name: f"{dict(sorted(counts.items()))}" for name, counts in (("in", after.actions), ("held", after.states))}
    return [
        Check(NAME, f"kills (seed {seed}): {of}", f"{died.total()} in {time.monotonic() - started:.0f} s", 0),
        Check(NAME, "books that did not reconcile, after each kill", f"{off}", off),
        Check(NAME, f"in = delivered + held + blocked: {sum(after.actions.values()):,}", seen["in"], after.off),
        Check(NAME, "held = decided + expired + open", seen["held"], after.off),
        *(Check(NAME, says, str(count), count) for says, count in wrong.items()),
    ]


def _client() -> ClientSession:
    return ClientSession(timeout=ClientTimeout(30))


async def _ask(fleet: Fleet, client: ClientSession, key: str, told: Told, number: int) -> None:
    """Batches without a pause; a tenth of the held messages was asked before."""
    dice, count = random.Random(number), 0
    headers = {"authorization": f"Bearer {key}"}
    while not told.stopped:
        count += AT_ONCE
        numbers = [dice.randrange(count) if dice.random() < 0.1 else count + n for n in range(AT_ONCE)]
        inputs = [{"message": f"{dice.choice(WORDS)} {n * CALLERS + number}"} for n in numbers]
        url = f"{dice.choice(fleet.up).url}/tasks/posts/batch"
        with contextlib.suppress(ClientError, TimeoutError):
            async with client.post(url, json={"inputs": inputs}, headers=headers) as answer:
                if answer.status == 200:
                    said = (await answer.json())["metadata"]["responses"]
                    told.actions |= {each["run_id"]: each["action"] for each in said}
        # Callers who wait for an answer, not a flood: reviewers keep up with them.
        await asyncio.sleep(0.5)


async def _review(desk: Desk, client: ClientSession, key: str, number: int, told: Told) -> None:
    """A queue that is empty for a moment fills again, while anybody asks."""
    while not told.stopped:
        await review_until_done(desk, client, key, number)
        desk.left = 1


async def _busy(told: Told) -> None:
    """Whatever dies, dies while answers come."""
    enough = len(told.actions) + 2 * AT_ONCE
    while True:
        if len(told.actions) >= enough:
            return
        await asyncio.sleep(0.02)


async def _time_passes(postgres: str) -> None:
    """The deadline of a few that wait is now."""
    some = select(_item.id).where(_item.state == "open").order_by(_item.rank_at.desc()).limit(3)
    async with opened(postgres) as database, database.begin() as connection:
        now = Clock(new_id=str).now()
        await connection.execute(update(review_item).where(_item.id.in_(some)).values(due_at=now))


async def _count(postgres: str) -> Count:
    """One statement, so one instant."""
    runs = select(_run.action.label("of"), func.count().label("n")).group_by(_run.action)
    held = select(func.concat("held ", _item.state).label("of"), func.sum(_item.runs).label("n")).group_by(_item.state)
    async with opened(postgres) as database, database.begin() as connection:
        rows = {str(row.of): int(row.n) for row in await connection.execute(runs.union_all(held))}
    states = {name.removeprefix("held "): n for name, n in rows.items() if name.startswith("held ")}
    return Count({name: n for name, n in rows.items() if not name.startswith("held ")}, states)


async def _sent(postgres: str) -> None:
    """Until nothing waits to be sent."""
    async with opened(postgres) as database:
        while True:
            if not await _number(database, select(func.count()).where(_message.status == "pending")):
                return
            await asyncio.sleep(0.1)


async def _wrong(postgres: str, told: Told, receiver: Receiver) -> dict[str, int]:
    """What must not be, and how often it is."""
    async with opened(postgres) as database:
        async with database.begin() as connection:
            actions = {row.id: row.action for row in await connection.execute(select(_run.id, _run.action))}
            outcomes = {row.id: row.outcome for row in await connection.execute(select(_item.id, _item.outcome))}
            states = {row.id: row.state for row in await connection.execute(select(_item.id, _item.state))}
            held = frozenset((await connection.execute(select(review.c.inference_id))).scalars())
        lives = {id_: await SqlReviewBook(database).history(id_) for id_ in states}
        waiting = await _number(database, select(func.count()).where(_item.state.in_(WAITING)))
    settled = [sum(event.event in ("decided", "expired") for event in life) for life in lives.values()]
    heard = list(receiver.taken.values())
    runs = [run["run_id"] for message in heard for run in message["data"]["runs"]]
    return {
        f"answers without a row, or with another action, of {len(told.actions):,}": sum(
            actions.get(run_id) != action for run_id, action in told.actions.items()
        ),
        "items that are still open": waiting,
        f"items not settled exactly once, of {len(states):,}": sum(count != 1 for count in settled),
        "items that are not the sum of their events": sum(state_of(list(lives[i])) != states[i] for i in states),
        f"outcomes not told as they are, of {len(outcomes):,}": len(
            set(outcomes.items()) ^ {(m["data"]["review_id"], m["data"]["outcome"]) for m in heard}
        ),
        f"held runs not told of exactly once, of {len(held):,}": len(held ^ set(runs)) + len(runs) - len(set(runs)),
        "messages that came again with other words": len(receiver.differing),
    }


async def _number(database: Database, query: Any) -> int:
    async with database.begin() as connection:
        return int((await connection.execute(query)).scalar_one())
