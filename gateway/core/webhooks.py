"""What callers are told of held items, and when it is tried again.

Messages are Standard Webhooks (https://www.standardwebhooks.com): an id that stays the same however often a message is
sent, a time stamp and an HMAC-SHA256 signature. URLs come from administrators, never from callers.
"""

import secrets
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from gateway.core.audit import TERMINAL, Actor
from gateway.core.errors import InvalidInput
from gateway.core.reviews import Event, Item

ATTEMPTS = 12
"""After so many a message is dead; `gateway webhooks replay` revives it."""
RUNS_AT_ONCE = 500
_FACTOR, _LONGEST = 3, timedelta(hours=12)
_TYPES = {"expired": "review.expired", "withdrawn": "review.withdrawn", "overturned": "review.amended"}

MessageStatus = Literal["pending", "delivered", "dead", "cancelled"]


class Webhook(Struct, frozen=True):
    """Where a team hears of outcomes. `secret` is a reference (`env:NAME`, `file:PATH`) or the secret itself.

    `former_secret` is the one before it: until `former_until` messages are signed with both, so that the receiver can
    go over from one to the other at a time of its own.
    """

    team: str
    url: str
    secret: str
    created_at: datetime
    former_secret: str | None = None
    former_until: datetime | None = None

    def former(self, at: datetime) -> str | None:
        """The secret that is on its way out, while it counts."""
        return self.former_secret if self.former_until is not None and at < self.former_until else None


class ToldRun(Struct, frozen=True):
    """A run that an outcome settles, as its caller knows it."""

    run_id: str
    review_id: str
    item_id: str | None
    thread_id: str | None


class Message(Struct, frozen=True, kw_only=True):
    """One entry of the outbox. `id` is the webhook-id; `attempts` counts those that were begun."""

    id: str
    team: str
    review_id: str
    body: str
    status: MessageStatus
    attempts: int
    due_at: datetime
    created_at: datetime
    error: str | None = None
    delivered_at: datetime | None = None


class Webhooks(Protocol):
    """Addresses of teams. Whatever changes them is in the audit log as the act of `by`."""

    async def put(self, webhook: Webhook, by: Actor = TERMINAL) -> None:
        """Set or replace it. Raises NotFound where there is no such team, Unavailable."""

    async def of_team(self, team: str) -> Webhook | None:
        """The team's, if it has one. Raises Unavailable."""

    async def rotate(self, team: str, secret: str, now: datetime, overlap: timedelta, by: Actor = TERMINAL) -> Webhook:
        """Another secret; the one that it replaces counts through the overlap. A further rotation ends that of the one
        before. Raises NotFound, Unavailable.
        """

    async def remove(self, team: str, by: Actor = TERMINAL) -> None:
        """From now on nothing is sent. Raises NotFound, Unavailable."""


class Outbox(Protocol):
    """Messages that wait to be sent."""

    async def claim(
        self, now: datetime, until: datetime, limit: int, without: Collection[str] = ()
    ) -> Sequence[tuple[Message, Webhook | None]]:
        """Messages that are due, but for those of the teams `without`, with where they go; nobody else claims them
        before `until`. Raises Unavailable.
        """

    async def delivered(self, message: Message, now: datetime) -> None:
        """The receiver has it. Raises Unavailable."""

    async def failed(self, message: Message, error: str, again_at: datetime | None) -> None:
        """It is due again, or dead where `again_at` is None. Raises Unavailable."""


class Sender(Protocol):
    """The wire."""

    async def send(self, message: Message, webhook: Webhook) -> str | None:
        """None where the receiver took it, else what went wrong in a few words. Never raises."""


def outcome_body(item: Item, event: Event, runs: Sequence[ToldRun]) -> str:
    """What the caller reads: the outcome of an item and the runs that it settles. Who decided is not said."""
    decided = item.decision
    assert decided is not None
    amended = event.event == "decided" and decided.revision > 1
    data: Mapping[str, Any] = {
        "review_id": item.id,
        "task": item.task,
        "outcome": decided.outcome,
        "policies": decided.policies,
        "reason": decided.reason,
        "by": "person" if event.event in ("decided", "overturned") else "clock",
        "revision": decided.revision,
        "runs": runs,
    }
    kind = "review.amended" if amended else _TYPES.get(event.event, "review.decided")
    return msgspec.json.encode({"type": kind, "timestamp": event.at, "data": data}).decode()


def again_at(now: datetime, attempts: int, first_pause_s: float, jitter: float) -> datetime | None:
    """When a message that failed is tried again: each pause three times the last, up to twelve hours; None: never.

    `jitter` in [0, 1) adds up to a fifth, so that a receiver that comes back is not met by everything at once.
    """
    if attempts >= ATTEMPTS:
        return None
    pause = min(timedelta(seconds=first_pause_s * _FACTOR ** (attempts - 1)), _LONGEST)
    return now + pause * (1 + jitter / 5)


def new_secret() -> str:
    """32 random bytes, in the form that receivers expect."""
    return "whsec_" + b64encode(secrets.token_bytes(32)).decode()


def checked_url(url: str) -> str:
    """The URL. Raises InvalidInput for what is none, or holds a user or a password."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.username and parts.port != 0
    except ValueError:
        good = False
    if not good or len(url) > 2000:
        raise InvalidInput("A webhook's URL is http:// or https:// with a host, and without user or password.")
    return url
