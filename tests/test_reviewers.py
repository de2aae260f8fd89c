"""Fifty reviewers over two gateways, one of which is killed: nothing is decided twice, and nothing is lost."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout
from reviewers import CALLER, OWNER, SETTINGS, Desk, Receiver, books, make_home, messages, review_until_done, send
from stack import Gateway, gateway

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.core.clock import Clock
from gateway.core.webhooks import Webhook, new_secret

# `make prove` sets 5000.
ITEMS = int(os.environ.get("PROVE_REVIEWS", "200"))
REVIEWERS = 50


@pytest.mark.timeout(max(300, ITEMS // 4))
async def test_fifty_reviewers_on_two_gateways(tmp_path: Path, database_url: str, valkey: str) -> None:
    """Each item is decided once, by whoever had its lease; leases of those who went away return; a gateway that is
    killed takes nothing with it; the caller gets each outcome as it was decided; the counts reconcile.
    """
    home = make_home(tmp_path / "home")
    key = await new_key(database_url, CALLER, frozenset({"invoke", "read"}))
    keys = [await new_key(database_url, OWNER, frozenset({"review"})) for _ in range(REVIEWERS)]
    texts, receiver = messages(ITEMS), Receiver(secret := new_secret(), ITEMS)
    async with receiver.listening() as hook:
        await _hook(database_url, hook, secret)
        served = (home, database_url, valkey, "http://127.0.0.1:1")
        with gateway(*served, **SETTINGS) as one, gateway(*served, **SETTINGS) as two:
            half = len(texts) // 2
            told = await send(one, key, texts[:half]) + await send(two, key, texts[half:])
            desk = Desk([one, two], ITEMS)
            async with ClientSession(timeout=ClientTimeout(30)) as client:
                each = (review_until_done(desk, client, k, n) for n, k in enumerate(keys))
                working = asyncio.gather(*each)
                await desk.half.wait()
                _kill(two)
                desk.up = [one]
                await working
            await receiver.complete.wait()
            async with one.client(key) as client:
                some = [run["run_id"] for m in list(receiver.taken.values())[:5] for run in m["data"]["runs"]]
                runs = [(await client.get(f"/tasks/posts/runs/{run_id}")).json() for run_id in some]
    found = await books(database_url)
    assert desk.twice == []
    assert set(found.decisions.values()) == {1}
    assert len(found.decisions) == ITEMS
    assert {id_: found.outcomes[id_] for id_ in desk.decided} == desk.decided
    assert found.lapsed >= min(desk.abandoned, 1)
    # in = delivered + held + blocked; held = decided + expired + open
    assert sum(found.actions.values()) == len(texts) == sum(told.values())
    assert dict(told) == dict(found.actions)
    assert found.actions["review"] == found.states["decided"] == sum(found.states.values())
    messages_told = list(receiver.taken.values())
    assert receiver.differing == []
    assert {m["data"]["review_id"]: m["data"]["outcome"] for m in messages_told} == found.outcomes
    assert {run["run_id"] for m in messages_told for run in m["data"]["runs"]} == found.runs
    assert len(messages_told) == ITEMS
    assert {run["review"]["state"] for run in runs} == {"decided"}
    assert [run["review"]["outcome"] for run in runs] == [found.outcomes[run["review"]["review_id"]] for run in runs]


async def _hook(database_url: str, url: str, secret: str) -> None:
    database = Database(database_url)
    await SqlWebhooks(database).put(Webhook(CALLER, url, secret, Clock(new_id=str).now()))
    await database.aclose()


def _kill(up: Gateway) -> None:
    os.killpg(up.child.process.pid, signal.SIGKILL)
