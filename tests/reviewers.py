"""A queue under load: rules that hold items, reviewers who come and go, a receiver that fails half of the time."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, web
from msgspec import Struct, field
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from stack import Gateway, home_of
from standardwebhooks.webhooks import Webhook as Verifier

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import inference, review, review_event, review_item

OWNER, CALLER = "etiquette", "shop"
TASK = """
owner = "etiquette"
description = "Is it rude?"
input = "input.json"
output = "output.json"
positive = "rude"

[[stage]]
name = "rules"
kind = "rules"
file = "rules.toml"

[actions]
fine = "deliver"
rude = "review"
vile = "block"
deferred = "review"

[review]
sla_minutes = 120
on_expiry = "block"
"""
RULES = "\n".join(
    f"[[rule]]\nname = '{word}'\nlabel = '{label}'\npatterns = ['\\b{word}\\b']"
    for word, label in (("thanks", "fine"), ("silly", "rude"), ("awful", "vile"))
)
INPUT = """{"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}"""
FILES = {
    "models.toml": "",
    "tasks/posts/task.toml": TASK,
    "tasks/posts/rules.toml": RULES,
    "tasks/posts/input.json": INPUT,
    "tasks/posts/output.json": '{"type": "object"}',
}


SETTINGS = {
    # Longer than any request takes on a busy machine: what is slow would never be decided.
    "review_lease_s": "8",
    "review_undo_s": "0",
    "sweep_s": "1",
    "webhook_retry_s": "0.05",
    "permits": "1024",
}
"""Of the gateways that reviewers work on."""


def make_home(folder: Path) -> Path:
    """A home with the task `posts`, which no model is asked for."""
    return home_of(folder, FILES)


def messages(held: int) -> list[str]:
    """So many questions, a tenth of them asked twice, and half as many messages each that nobody has to see."""
    some = [f"silly {n}" for n in range(held)] + [f"silly {n}" for n in range(0, held, 10)]
    some += [f"thanks {n}" for n in range(held // 2)] + [f"awful {n}" for n in range(held // 2)]
    random.Random(held).shuffle(some)
    return some


async def send(up: Gateway, key: str, texts: list[str]) -> Counter[str]:
    """The actions that the caller was told, by a hundred."""
    told: Counter[str] = Counter()
    async with up.client(key) as client:
        for start in range(0, len(texts), 100):
            body = {"inputs": [{"message": text} for text in texts[start : start + 100]]}
            answer = (await client.post("/tasks/posts/batch", json=body)).json()
            told.update(each["action"] for each in answer["metadata"]["responses"])
    return told


class Desk(Struct):
    """What reviewers share: where the gateways are, how many items are left, and what each of them was told."""

    up: list[Gateway]
    items: int
    left: int = 1
    decided: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    abandoned: int = 0
    half: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self, id_: str, outcome: str) -> None:
        """A reviewer's decision was accepted."""
        if id_ in self.decided:
            self.twice.append(id_)
        self.decided[id_] = outcome
        if len(self.decided) * 2 >= self.items:
            self.half.set()


async def review_until_done(desk: Desk, client: ClientSession, key: str, number: int) -> None:
    """One reviewer: takes, then decides, hands back, or goes away with the lease. Asks again until nothing is left."""
    reviewer = _Reviewer(client, {"authorization": f"Bearer {key}"}, random.Random(number))
    while desk.left > 0:
        try:
            await _one(desk, reviewer)
        except (ClientError, TimeoutError):
            # A gateway that was killed: the next question goes to one that lives.
            continue


class _Reviewer(Struct):
    client: ClientSession
    headers: dict[str, str]
    dice: random.Random

    async def post(self, url: str, body: dict[str, str]) -> Any:
        """The answer; None where it is none, or an error."""
        return await self._answer("POST", url, json=body)

    async def get(self, url: str) -> Any:
        """The same."""
        return await self._answer("GET", url)

    async def _answer(self, method: str, url: str, **more: Any) -> Any:
        async with self.client.request(method, url, headers=self.headers, **more) as response:
            return await response.json() if response.status == 200 else None


async def _one(desk: Desk, by: _Reviewer) -> None:
    at = by.dice.choice(desk.up).url
    answer = await by.post(f"{at}/reviews/next", {})
    case = answer["next"] if answer else None
    if case is None:
        depth = await by.get(f"{at}/reviews/depth")
        # Whoever is told to come again later, does.
        if answer and depth:
            desk.left = sum(queue["open"] + queue["leased"] + queue["escalated"] for queue in depth["queues"])
        # Nothing is free, but others may hand back what they hold.
        await asyncio.sleep(0.25)
        return
    path, token, chance = f"{at}/reviews/{case['review']['id']}", case["token"], by.dice.random()
    if chance < 0.03:
        desk.abandoned += 1
    elif chance < 0.06:
        await by.post(f"{path}/release", {"token": token})
    else:
        outcome = wanted(case["input"]["message"])
        if await by.post(f"{path}/decide", {"token": token, "outcome": outcome}):
            desk.told(case["review"]["id"], outcome)


def wanted(text: str) -> str:
    """How a message is decided: by its number."""
    return "block" if int(text.split()[1]) % 3 == 0 else "deliver"


class Receiver:
    """The caller's service. Fails every second time on the average, and never one message more than three times."""

    def __init__(self, secret: str, expected: int) -> None:
        self.verifier, self.dice = Verifier(secret), random.Random(5)
        self.expected, self.complete = expected, asyncio.Event()
        self.taken: dict[str, dict[str, Any]] = {}
        self.failures: Counter[str] = Counter()
        self.differing: list[str] = []

    async def take(self, request: web.Request) -> web.Response:
        """Verify, then take it or fail."""
        id_ = request.headers["webhook-id"]
        body = self.verifier.verify(await request.text(), dict(request.headers))
        if self.failures[id_] < 3 and self.dice.random() < 0.5:
            self.failures[id_] += 1
            return web.Response(status=500)
        if self.taken.setdefault(id_, body) != body:
            self.differing.append(id_)
        if len(self.taken) >= self.expected:
            self.complete.set()
        return web.Response()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its address."""
        app = web.Application()
        app.router.add_post("/hook", self.take)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"{site.name}/hook"
        finally:
            await runner.cleanup()


class Books(Struct, frozen=True):
    """What the database says afterwards."""

    actions: Mapping[str, int]
    states: Mapping[str, int]
    outcomes: Mapping[str, str]
    decisions: Mapping[str, int]
    lapsed: int
    runs: frozenset[str]


async def books(url: str) -> Books:
    """Runs by action, held runs by state, outcome and number of decisions by item."""
    database = Database(url, 60)
    try:
        async with database.begin() as connection:
            actions = select(inference.c.action, func.count()).group_by(inference.c.action)
            states = select(review_item.c.state, func.sum(review_item.c.runs)).group_by(review_item.c.state)
            events = select(review_event.c.review_id, func.count()).where(review_event.c.event == "decided")
            lapsed = select(func.count()).where(review_event.c.event == "lease_expired")
            outcomes = select(review_item.c.id, review_item.c.outcome)
            return Books(
                actions=await _pairs(connection, actions),
                states=await _pairs(connection, states),
                outcomes=await _pairs(connection, outcomes),
                decisions=await _pairs(connection, events.group_by(review_event.c.review_id)),
                lapsed=(await connection.execute(lapsed)).scalar_one(),
                runs=frozenset((await connection.execute(select(review.c.inference_id))).scalars()),
            )
    finally:
        await database.aclose()


async def _pairs(connection: AsyncConnection, query: Select[Any]) -> dict[str, Any]:
    return {row[0]: row[1] for row in await connection.execute(query)}
