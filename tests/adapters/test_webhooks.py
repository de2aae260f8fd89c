"""Webhooks on real sockets: signed, repeated until they are taken, with one id each."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import insert
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError
from stories import new_id, now

from gateway.adapters.sql import tables
from gateway.adapters.sql.audit import SqlAudit
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.outbox import SqlOutbox
from gateway.adapters.sql.teams import SqlTeams
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.adapters.webhooks import HttpSender, signed
from gateway.core.audit import TERMINAL
from gateway.core.clock import Clock
from gateway.core.courier import AT_ONCE, CLAIM, Courier
from gateway.core.errors import NotFound
from gateway.core.records import Team
from gateway.core.webhooks import ATTEMPTS, Message, Webhook, again_at, new_secret

SECRET = new_secret()


class Receiver:
    """A service that takes messages, or does not: `answers` says which status each gets."""

    def __init__(self, answers: Callable[[], int], secret: str = SECRET, location: str = "http://127.0.0.1:1/") -> None:
        self.answers, self.verifier, self.location = answers, Verifier(secret), location
        self.taken: dict[str, Any] = {}
        self.tries = 0

    async def take(self, request: web.Request) -> web.Response:
        """Verify, remember what was taken, answer."""
        self.tries += 1
        body = self.verifier.verify(await request.text(), dict(request.headers))
        if (status := self.answers()) == 200:
            self.taken[request.headers["webhook-id"]] = body
        return web.Response(status=status, headers={"location": self.location})

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
            yield f"{site.name.replace('localhost', '127.0.0.1')}/hook" if "://" in site.name else ""
        finally:
            await runner.cleanup()


class Moving:
    """A clock that is wound by hand."""

    def __init__(self) -> None:
        self.at = now()

    def clock(self) -> Clock:
        """As the courier wants it."""
        return Clock(new_id=new_id, now=lambda: self.at)

    def later(self, by: timedelta) -> None:
        """Wind it."""
        self.at += by


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database with the team `acme`."""
    database = Database(database_url)
    await SqlTeams(database).add(Team("acme", now()))
    yield database
    await database.aclose()


async def leave(
    database: Database, count: int, at: datetime, secret: str = SECRET, url: str = "", team: str = "acme"
) -> list[str]:
    """Messages that are due, and the team's address."""
    await SqlWebhooks(database).put(Webhook(team, url, secret, at))
    ids = [new_id() for _ in range(count)]
    rows = [
        {
            "id": id_, "team": team, "review_id": new_id(), "body": f'{{"n":{n}}}', "status": "pending",
            "attempts": 0, "due_at": at, "created_at": at,
        }
        for n, id_ in enumerate(ids)
    ]  # fmt: skip
    async with database.begin() as connection:
        await connection.execute(insert(tables.webhook_message), rows)
    return ids


async def test_a_receiver_that_fails_half_of_the_time_gets_everything(database: Database) -> None:
    """Each message arrives as it was written, verified, under its own id; what failed was tried again."""
    dice, time, sender = random.Random(7), Moving(), HttpSender()
    receiver = Receiver(lambda: 200 if dice.random() < 0.5 else 503)
    courier = Courier(SqlOutbox(database), sender, time.clock(), 5.0)
    async with receiver.listening() as url:
        ids = await leave(database, 50, time.at, url=url)
        while len(receiver.taken) < len(ids):
            while await courier.turn():
                pass
            time.later(timedelta(hours=13))
    await sender.aclose()
    assert {id_: body["n"] for id_, body in receiver.taken.items()} == {id_: n for n, id_ in enumerate(ids)}
    assert receiver.tries > len(ids)
    assert {m.status for m in await SqlOutbox(database).listed(None, 100)} == {"delivered"}


async def test_a_receiver_that_hangs_delays_nobody_else(database: Database) -> None:
    """Of a team whose service takes messages and never answers only some are on their way; another team's arrive."""
    time, sender = Moving(), HttpSender()
    await SqlTeams(database).add(Team("other", now()))
    release, taken = asyncio.Event(), asyncio.Event()

    class Hanging(Receiver):
        async def take(self, request: web.Request) -> web.Response:
            self.tries += 1
            await release.wait()
            return web.Response()

    class Quick(Receiver):
        async def take(self, request: web.Request) -> web.Response:
            taken.set()
            return await super().take(request)

    hanging, quick = Hanging(lambda: 200), Quick(lambda: 200)
    following = asyncio.create_task(Courier(SqlOutbox(database), sender, time.clock(), 5.0).follow())
    async with hanging.listening() as slow_url, quick.listening() as url:
        await leave(database, 2 * AT_ONCE, time.at - timedelta(minutes=1), url=slow_url)
        await leave(database, 1, time.at, url=url, team="other")
        await taken.wait()
        assert 0 < hanging.tries < AT_ONCE
        release.set()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await sender.aclose()


@pytest.mark.parametrize("status", [500, 404, 302])
async def test_what_nobody_takes_is_dead_and_can_be_replayed(database: Database, status: int) -> None:
    """After the last attempt nothing is sent until somebody asks for it; redirects are not followed."""
    time, sender, outbox = Moving(), HttpSender(), SqlOutbox(database)
    receiver = Receiver(lambda: status)
    courier = Courier(outbox, sender, time.clock(), 5.0)
    async with receiver.listening() as url:
        (id_,) = await leave(database, 1, time.at, url=url)
        for _ in range(ATTEMPTS + 3):
            await courier.turn()
            time.later(timedelta(hours=15))
        (message,) = await outbox.listed("dead", 10)
        assert (message.attempts, message.error, receiver.tries) == (ATTEMPTS, f"HTTP {status}", ATTEMPTS)
        receiver.answers = lambda: 200
        assert await outbox.replay(time.at, ()) == 1
        await courier.turn()
    await sender.aclose()
    assert list(receiver.taken) == [id_]
    with pytest.raises(NotFound):
        await outbox.replay(time.at, [new_id()])
    (act,) = [act for act in await SqlAudit(database).latest(9) if act.act == "webhooks_replayed"]
    assert (act.by, act.subject, act.detail) == (TERMINAL, message.team, {"messages": 1})


async def test_a_courier_that_died_leaves_its_messages_to_others(database: Database) -> None:
    """What is claimed is nobody else's for a minute, and somebody's afterwards."""
    at, outbox = now(), SqlOutbox(database)
    await leave(database, 3, at)
    assert len(await outbox.claim(at, at + CLAIM, 10)) == 3
    assert await outbox.claim(at, at + CLAIM, 10) == []
    assert len(await outbox.claim(at + CLAIM, at + 2 * CLAIM, 10)) == 3


async def test_a_team_without_address_or_secret_is_told_nothing(database: Database) -> None:
    """A removed webhook makes what waits dead; a secret that cannot be used is an error that says so, no crash."""
    time, sender, outbox = Moving(), HttpSender(), SqlOutbox(database)
    courier = Courier(outbox, sender, time.clock(), 5.0)
    await leave(database, 1, time.at, secret="env:TASKGATE_NO_SUCH_VARIABLE", url="http://127.0.0.1:1/")
    await courier.turn()
    (message,) = await outbox.listed("pending", 10)
    assert message.error == "the secret cannot be used"
    await SqlWebhooks(database).remove("acme")
    time.later(timedelta(hours=1))
    await courier.turn()
    assert [m.status for m in await outbox.listed(None, 10)] == ["dead"]
    await sender.aclose()


@pytest.mark.parametrize("bad", ["http://xn--/", "url", "secret", "defect"])
async def test_what_no_sender_foresees_stops_no_other_message(database: Database, bad: str) -> None:
    """A redirect to what is no name, an address or a secret that is none, a defect: the message is tried again, and
    the courier goes on with the others.
    """

    class Broken(HttpSender):
        async def send(self, message: Message, webhook: Webhook) -> str | None:
            if bad == "defect" and message.team == "bad":
                raise LookupError("nobody thought of it")
            return await super().send(message, webhook)

    time, sender = Moving(), Broken()
    outbox = SqlOutbox(database)
    courier = Courier(outbox, sender, time.clock(), 5.0)
    await SqlTeams(database).add(Team("bad", now()))
    good, moved = Receiver(lambda: 200), Receiver(lambda: 302, location=bad)
    async with good.listening() as url, moved.listening() as elsewhere:
        secret = "whsec_\ufeff" if bad == "secret" else SECRET
        await leave(database, 1, time.at, team="bad", secret=secret, url="http://xn--/" if bad == "url" else elsewhere)
        await leave(database, 1, time.at, url=url)
        following = asyncio.create_task(courier.follow())
        async with asyncio.timeout(30):
            while True:
                if good.taken and (bad == "defect" or await _tried(outbox)):
                    break
                await asyncio.sleep(0.01)
        assert not following.done()
        following.cancel()
    await sender.aclose()


async def _tried(outbox: SqlOutbox) -> bool:
    return any(m.team == "bad" and m.error for m in await outbox.listed(None, 10))


def test_another_secret_or_body_does_not_verify() -> None:
    """The signature covers id, time and body."""
    at = now()
    message = Message(
        id=new_id(), team="acme", review_id="r", body="{}", status="pending", attempts=1, due_at=at, created_at=at
    )
    headers = signed(message, [Verifier(SECRET)], at)
    Verifier(SECRET).verify("{}", headers)
    for secret, body, changed in (
        (new_secret(), "{}", {}),
        (SECRET, '{"a":1}', {}),
        (SECRET, "{}", {"webhook-id": "other"}),
    ):
        with pytest.raises(WebhookVerificationError):
            Verifier(secret).verify(body, {**headers, **changed})


async def test_through_the_overlap_of_two_secrets_either_verifies(database: Database) -> None:
    """A receiver may change its secret at any time of the overlap, and hears every message; after it, the new one
    alone counts. A former secret that is a reference to nothing any more, or is none, stops no message.
    """
    sender, time, fresh = HttpSender(), Moving(), new_secret()
    courier, webhooks = Courier(SqlOutbox(database), sender, time.clock(), 5.0), SqlWebhooks(database)
    for overlap, verify_with, before, arrives in (
        (timedelta(hours=1), SECRET, SECRET, 1),
        (timedelta(hours=1), fresh, SECRET, 1),
        (timedelta(), fresh, SECRET, 1),
        (timedelta(), SECRET, SECRET, 0),
        (timedelta(hours=1), fresh, "env:TASKGATE_NO_SUCH_VARIABLE", 1),
        (timedelta(hours=1), fresh, "whsec_not\ufeffbase64", 1),
    ):
        receiver = Receiver(lambda: 200, verify_with)
        async with receiver.listening() as url:
            await leave(database, 1, time.at, secret=before, url=url)
            await webhooks.rotate("acme", fresh, now(), overlap)
            await courier.turn()
        assert len(receiver.taken) == arrives
    await sender.aclose()
    with pytest.raises(NotFound):
        await webhooks.rotate("nobody", fresh, now(), timedelta())


def test_pauses_grow_and_end() -> None:
    """Five seconds, then three times as long each time, at most twelve hours, and then no more."""
    at = now()
    pauses = [again_at(at, n, 5.0, 0.0) for n in range(1, ATTEMPTS)]
    seconds = [(pause - at).total_seconds() for pause in pauses if pause is not None]
    assert seconds[:4] == [5, 15, 45, 135]
    assert seconds == sorted(seconds)
    assert max(seconds) == 12 * 3600
    assert again_at(at, ATTEMPTS, 5.0, 0.0) is None
