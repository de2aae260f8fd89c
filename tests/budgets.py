"""Gateways with money to spend: a model that answers at once and counts, limits of teams, and what was spent."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
from fault_server import FaultServer, serving
from sqlalchemy import func, select
from stack import Gateway
from tokenizers import Tokenizer

from gateway.adapters.sql.database import Database
from gateway.adapters.sql.tables import intent, model_call
from gateway.local.valkey import Valkey

# What an estimate may exceed the true cost by: the tokenizer's margin, at the price of `stack.MODELS`.
SLACK_NANO = 16 * 1000
INVOKE = "/tasks/manners/invoke"


@asynccontextmanager
async def counting_model(folder: Path) -> AsyncIterator[tuple[FaultServer, str]]:
    """The model server and its URL. What reached it stands in `asked`."""
    model = FaultServer(Tokenizer.from_file(str(folder / "tokenizer.json")))
    async with serving(model) as url:
        yield model, url


@contextmanager
def mortal_valkey() -> Iterator[Valkey]:
    """A Valkey that keeps nothing, to be killed and started again under the same URL."""
    valkey = Valkey()
    valkey.start()
    try:
        yield valkey
    finally:
        valkey.remove()


def message(number: int) -> str:
    """Messages that differ, and cost the same: so much that the slack of a few estimates never pays for one more."""
    return f"Message {number:06d} {'x' * 400}"


async def ask(
    client: httpx.AsyncClient, message: str, at: str = "", **headers: str
) -> tuple[httpx.Response, dict[str, Any]]:
    """Invoke the task `manners`, of the gateway `at` where the client has none: the response and its metadata."""
    response = await client.post(f"{at}{INVOKE}", json={"input": {"message": message}}, headers=headers)
    return response, response.json().get("metadata", {})


async def limit_team(gateways: Sequence[Gateway], admin: str, team: str, *limits: dict[str, Any]) -> None:
    """Set the team's limits over HTTP; returns when every gateway holds them, as a marker quota among them shows."""
    marker = {"resource": "requests", "limit": 90_000 + len(limits), "per": "day"}
    async with gateways[0].client(admin) as client:
        done = await client.put(f"/teams/{team}/limits", json={"limits": [*limits, marker]})
        assert done.status_code == 200, done.text
    await asyncio.gather(*(_shows(each, admin, marker["limit"]) for each in gateways))


async def _shows(at: Gateway, admin: str, limit: object) -> None:
    """The admin key is of the limited team, so its own requests show the marker."""
    async with asyncio.timeout(60), at.client(admin) as client:
        while (await ask(client, "Thank you"))[0].headers.get("x-ratelimit-limit-requests") != str(limit):
            pass


async def ledger_state(database_url: str) -> tuple[int, int, int]:
    """(model calls, their cost, open intents)."""
    database = Database(database_url)
    try:
        async with database.begin() as connection:
            calls = select(func.count(), func.coalesce(func.sum(model_call.c.cost_nano), 0)).select_from(model_call)
            count, cost = (await connection.execute(calls)).one()
            intents = (await connection.execute(select(func.count()).select_from(intent))).scalar_one()
            return count, int(cost), intents
    finally:
        await database.aclose()
