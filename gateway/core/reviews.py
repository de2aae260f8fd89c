"""Reviews: the questions put to people.

    open → leased → decided | escalated | expired | withdrawn

An item is one question, asked for every run of a team whose input is the same. Its events are the truth; the item is
their sum, kept beside them so that a queue can be read from it. What may happen to it is in review_rules.

Questions of other kinds are about a held item, their root: a blind `second` opinion, the `third` that settles between
two, an `appeal`, a `gold` item whose answer is known. A reviewer sees no difference. `audit` items are their own root.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from msgspec import Struct, field

from gateway.core.audit import Actor

State = Literal["open", "leased", "decided", "escalated", "expired", "withdrawn"]
Kind = Literal["held", "second", "third", "appeal", "gold", "audit"]
Outcome = Literal["deliver", "block"]
OnExpiry = Literal["deliver", "block", "escalate"]
Agreement = Literal["right", "wrong_policy", "wrong_action", "unguided"]

LEASE = timedelta(minutes=10)
LEASES = 20
"""How many items one reviewer may have at a time."""
SKIPS = 3
"""How often an item may be skipped before it is a lead's."""
HEAD_START = 6
"""By how many SLAs the gravest and surest violation is brought forward in the queue."""
WAITING: tuple[State, ...] = ("open", "leased", "escalated")


class Reviewer(Struct, frozen=True):
    """Who judges: a key. A lead also takes what is escalated and undoes what others decided."""

    team: str
    key_id: str
    lead: bool = False

    @property
    def actor(self) -> Actor:
        """As events and the audit log name them."""
        return Actor(self.team, self.key_id)


CLOCK = Actor(None, "clock")
"""Who acts where a deadline does."""


class Ruling(Struct, frozen=True, kw_only=True):
    """What a reviewer says. `policies` are those that the item breaks; `reason` is a word, `note` free text, which is
    kept for leads alone, and as long as a text is, from when it was written.
    """

    outcome: Literal["deliver", "block", "escalate"]
    policies: tuple[str, ...] = ()
    reason: str | None = None
    note: str | None = None


class Decided(Struct, frozen=True, kw_only=True):
    """What holds now. `agrees`: how the machine's view looks beside it; `revision` counts outcomes from 1."""

    outcome: Outcome
    at: datetime
    by: Actor
    revision: int
    policies: tuple[str, ...] = ()
    reason: str | None = None
    agrees: Agreement = "unguided"


class Item(Struct, frozen=True, kw_only=True):
    """A question as it stands. `score` and `policies` are the machine's; `recommended` is its view, None where a
    person was asked because it had none. `barred` are the keys that may not judge it. `on_expiry` None: no clock.
    `escalated`: only a lead takes it. `gold`: reviewers are asked it again, and its outcome counts as known.
    """

    id: str
    kind: Kind
    root_id: str
    task: str
    caller_team: str
    owner_team: str
    fingerprint: str
    join_key: bytes | None = None
    near: int | None = None
    state: State = "open"
    position: int = 0
    runs: int = 1
    severity: int | None = None
    score: float | None = None
    policies: tuple[str, ...] = ()
    stage: str | None = None
    recommended: Outcome | None = None
    created_at: datetime
    due_at: datetime
    on_expiry: OnExpiry | None = None
    rank_at: datetime
    lease_token: str | None = None
    lease_key: str | None = None
    lease_until: datetime | None = None
    skips: int = 0
    barred: tuple[str, ...] = ()
    decision: Decided | None = None
    outcome: Outcome | None = None
    decided_at: datetime | None = None
    undo_until: datetime | None = None
    closed_at: datetime | None = None
    escalated: bool = False
    appealed: bool = False
    gold: bool = False

    @property
    def waiting(self) -> bool:
        """Nobody and no clock has settled it."""
        return self.state in WAITING


class Event(Struct, frozen=True, kw_only=True):
    """One step of an item's life. `position` counts them from 1; `detail` holds what the step said. Its `note` is kept
    apart: it goes with the text.
    """

    review_id: str
    position: int
    event: str
    actor: Actor
    at: datetime
    before: State
    after: State
    fingerprint: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class Change(Struct, frozen=True, kw_only=True):
    """What is written at once, or not at all.

    `on_root` is the rule that the root undergoes in the same transaction; `ask` are new questions. `tell`: the caller
    hears the outcome once nobody can undo it. `untell`: what it has not heard yet, it never hears, and questions that
    the outcome led to are withdrawn. `hold_near`: what reads almost the same is not delivered by a clock.
    """

    item: Item
    event: Event
    on_root: "Rule | None" = None
    ask: tuple[Item, ...] = ()
    tell: bool = False
    untell: bool = False
    hold_near: bool = False


Rule = Callable[[Item], Change]


def risk_of(severity: int | None, score: float | None) -> float:
    """The harm to expect in [0, 1]: severity × score. What nobody could judge counts as grave and as likely as not."""
    return (2 if severity is None else severity) / 3 * (0.5 if score is None else score)


def rank_of(created_at: datetime, due_at: datetime, risk: float) -> datetime:
    """The deadline, brought forward by up to HEAD_START SLAs for what is grave and likely. The earliest goes first.

    Severity × score and the time to the deadline in one number that does not change with time, so it can be indexed;
    and nothing starves: an item is overtaken only by what came at most HEAD_START SLAs after it.
    """
    return due_at - HEAD_START * risk * (due_at - created_at)


def state_of(events: "list[Event]") -> State:
    """The state that a life of events leads to. Raises ValueError where one does not follow from the one before."""
    state: State = "open"
    for position, event in enumerate(events, 1):
        if (event.position, event.before) != (position, state):
            raise ValueError(f"event {event.position} of {event.review_id} does not follow from {state}")
        state = event.after
    return state


def unit(key: str, salt: str) -> float:
    """A number in [0, 1) that depends on the key alone: which items are looked at twice is fixed, and unforeseeable."""
    digest = hashlib.sha256(f"{salt}\x00{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
