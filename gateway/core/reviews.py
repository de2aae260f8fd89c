"""Reviews: the questions put to people. States, who may do what, and what follows, as pure functions.

    open → leased → decided | escalated | expired | withdrawn

An item is one question, asked for every run of a team whose input is the same. Each rule takes the item as it stands
and returns the Change to write: the item as it becomes, and the event that says so. The events are the truth; the item
is their sum, kept beside them so that a queue can be read from it.

Questions of other kinds are about a held item, their root: a blind `second` opinion, the `third` that settles between
two, an `appeal`, a `gold` item whose answer is known. A reviewer sees no difference. `audit` items are their own root.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.core.audit import Actor
from gateway.core.errors import Conflict, Forbidden

State = Literal["open", "leased", "decided", "escalated", "expired", "withdrawn"]
Kind = Literal["held", "second", "third", "appeal", "gold", "audit"]
Outcome = Literal["deliver", "block"]
OnExpiry = Literal["deliver", "block", "escalate"]
Agreement = Literal["right", "wrong_policy", "wrong_action", "unguided"]

LEASE = timedelta(minutes=10)
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
    """What a reviewer says. `policies` are those that the item breaks; `reason` is a word, `note` free text."""

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
    note: str | None = None
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
    """One step of an item's life. `position` counts them from 1; `detail` holds what the step said."""

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


def takeable(item: Item, by: Reviewer, now: datetime, *, escalated: bool = False) -> bool:
    """Whether this reviewer may lease the item now. The store asks the same of its rows."""
    lapsed = item.state == "leased" and item.lease_until is not None and item.lease_until <= now
    free = lapsed or item.state in ("open", "escalated")
    allowed = item.owner_team == by.team and by.key_id not in item.barred and (by.lead or not escalated)
    return free and allowed and item.escalated == escalated


def lease(item: Item, by: Reviewer, now: datetime, token: str, lasting: timedelta = LEASE) -> Change:
    """Give it to a reviewer for a while. Raises Conflict where somebody else was faster, Forbidden."""
    if item.owner_team != by.team or by.key_id in item.barred:
        raise Forbidden("Somebody else judges this item.")
    if not takeable(item, by, now, escalated=item.escalated):
        raise Conflict("This item is not free.", state=item.state)
    until = now + lasting
    taken = replace(item, state="leased", lease_token=token, lease_key=by.key_id, lease_until=until)
    return _step(item, taken, "leased", by.actor, now, until=until.isoformat())


def renew(item: Item, by: Reviewer, now: datetime, token: str, lasting: timedelta = LEASE) -> Change:
    """Another lease from now on, but not beyond the deadline of the item. Raises Conflict for a stale token."""
    _check(item, by, now, token)
    if item.on_expiry is not None and item.due_at <= now:
        raise Conflict("The deadline of this item has passed; decide before the lease ends.")
    return _step(item, replace(item, lease_until=now + lasting), "renewed", by.actor, now)


def release(item: Item, by: Reviewer, now: datetime, token: str) -> Change:
    """Put it back into the queue, at its old place. Raises Conflict for a stale token."""
    _check(item, by, now, token)
    return _step(item, _free(item), "released", by.actor, now)


def skip(item: Item, by: Reviewer, now: datetime, token: str, reason: str) -> Change:
    """Leave it to others; what was skipped SKIPS times is a lead's. Raises Conflict for a stale token."""
    _check(item, by, now, token)
    skips = item.skips + 1
    left = replace(_free(item), skips=skips, barred=(*item.barred, by.key_id))
    if skips >= SKIPS:
        # Leads may judge what they skipped: nobody comes after them.
        left = replace(left, state="escalated", escalated=True, barred=item.barred)
    return _step(item, left, "skipped", by.actor, now, reason=reason, skips=skips)


def lapse(item: Item, now: datetime) -> Change:
    """A lease that ended with nobody deciding: the item returns to the queue."""
    return _step(item, _free(item), "lease_expired", CLOCK, now, key_id=item.lease_key)


def decide(item: Item, by: Reviewer, now: datetime, token: str, ruling: Ruling, undo: timedelta) -> Change:
    """Settle it, or hand it to a lead. Raises Conflict for a stale token: a late decision overwrites nothing."""
    _check(item, by, now, token)
    said: dict[str, Any] = {"outcome": ruling.outcome, "policies": list(ruling.policies)}
    said |= {"reason": ruling.reason, "note": ruling.note}
    if ruling.outcome == "escalate":
        up = replace(_free(item), state="escalated", escalated=True)
        return _step(item, up, "escalated", by.actor, now, **said)
    decided = _decided(item, ruling, by.actor, now)
    settled = replace(_closed(item, "decided", decided, now), undo_until=now + undo, barred=(*item.barred, by.key_id))
    grave = ruling.outcome == "block"
    step = _step(item, settled, "decided", by.actor, now, **said, agrees=decided.agrees, revision=decided.revision)
    return replace(step, tell=item.kind == "held", hold_near=grave and item.kind == "held")


def undo(item: Item, by: Reviewer, now: datetime) -> Change:
    """Take a decision back while nobody was told. Raises Forbidden where it is another's, Conflict when too late."""
    if item.state != "decided" or item.decision is None or item.undo_until is None or item.undo_until <= now:
        raise Conflict("There is nothing to undo, or it is too late for that.", state=item.state)
    if item.decision.by.key_id != by.key_id and not by.lead:
        raise Forbidden("Only who decided, or a lead, can undo this.")
    barred = tuple(key for key in item.barred if key != item.decision.by.key_id)
    again = replace(_free(item), outcome=None, decided_at=None, undo_until=None, closed_at=None, barred=barred)
    return replace(_step(item, again, "undone", by.actor, now), untell=item.kind == "held")


def expire(item: Item, now: datetime) -> Change:
    """The deadline passed: what the task declared happens. A lease is let run out first. Raises Conflict."""
    if item.state != "open" or item.on_expiry is None or item.due_at > now:
        raise Conflict("This item does not expire.", state=item.state)
    if item.on_expiry == "escalate":
        return _step(item, replace(item, state="escalated", escalated=True), "escalated", CLOCK, now, reason="deadline")
    decided = _decided(item, Ruling(outcome=item.on_expiry, reason="deadline"), CLOCK, now)
    step = _step(item, _closed(item, "expired", decided, now), "expired", CLOCK, now, outcome=item.on_expiry)
    return replace(step, tell=True)


def withdraw(item: Item, by: Actor, now: datetime, reason: str) -> Change:
    """End it without an answer: what was held stays undelivered. Raises Conflict where it is settled."""
    if not item.waiting:
        raise Conflict("This item is settled.", state=item.state)
    held = item.kind == "held"
    decided = _decided(item, Ruling(outcome="block", reason=reason), by, now) if held else None
    step = _step(item, _closed(item, "withdrawn", decided, now), "withdrawn", by, now, reason=reason)
    return replace(step, tell=held)


def hold(item: Item, now: datetime, because: str) -> Change:
    """What reads almost like this was blocked: no clock delivers it any more, and it moves to the front."""
    kept = replace(item, on_expiry="escalate", rank_at=rank_of(item.created_at, item.due_at, 1.0))
    return _step(item, kept, "held_near", CLOCK, now, because=because)


def amend(item: Item, decided: Decided, by: Actor, now: datetime, cause: Kind, cause_id: str) -> Change:
    """Another judgement prevails over the one that stands; the caller hears of it."""
    revision = (item.decision.revision if item.decision else 0) + 1
    new = replace(decided, revision=revision, at=now, by=by, agrees=agreement(item, decided.outcome, decided.policies))
    changed = replace(item, decision=new, outcome=new.outcome, decided_at=now, undo_until=now)
    detail = {"outcome": new.outcome, "policies": list(new.policies), "cause": cause, "cause_id": cause_id}
    return replace(_step(item, changed, "overturned", by, now, **detail, revision=revision), tell=True)


def uphold(item: Item, by: Actor, now: datetime, cause: Kind, cause_id: str) -> Change:
    """Another judgement came to the same end."""
    return _step(item, item, "upheld", by, now, cause=cause, cause_id=cause_id)


def agreement(item: Item, outcome: Outcome, policies: tuple[str, ...]) -> Agreement:
    """How the machine's view looks beside a person's: a right action for a wrong policy is told apart."""
    if item.recommended is None:
        return "unguided"
    if item.recommended != outcome:
        return "wrong_action"
    return "right" if outcome == "deliver" or set(policies) == set(item.policies) else "wrong_policy"


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


def _check(item: Item, by: Reviewer, now: datetime, token: str) -> None:
    mine = item.lease_token is not None and hmac.compare_digest(item.lease_token.encode(), token.encode())
    if item.state != "leased" or not mine or item.lease_key != by.key_id:
        raise Conflict("This lease is not, or no longer, yours.", state=item.state)
    if item.lease_until is None or item.lease_until <= now:
        raise Conflict("This lease has expired.", state=item.state)


def _free(item: Item) -> Item:
    """Without its lease: open, or a lead's as it was before."""
    state: State = "escalated" if item.escalated else "open"
    return replace(item, state=state, lease_token=None, lease_key=None, lease_until=None)


def _closed(item: Item, state: State, decided: Decided | None, now: datetime) -> Item:
    """Settled: nothing joins it any more."""
    outcome = decided.outcome if decided else None
    free = _free(item)
    return replace(free, state=state, decision=decided, outcome=outcome, decided_at=now, closed_at=now, join_key=None)


def _decided(item: Item, ruling: Ruling, by: Actor, now: datetime) -> Decided:
    outcome: Outcome = "deliver" if ruling.outcome == "deliver" else "block"
    return Decided(
        outcome=outcome,
        at=now,
        by=by,
        revision=(item.decision.revision if item.decision else 0) + 1,
        policies=ruling.policies,
        reason=ruling.reason,
        note=ruling.note,
        agrees="unguided" if by == CLOCK else agreement(item, outcome, ruling.policies),
    )


def _step(before: Item, after: Item, event: str, by: Actor, now: datetime, **detail: Any) -> Change:
    after = replace(after, position=before.position + 1)
    said = {name: value for name, value in detail.items() if value is not None}
    return Change(
        item=after,
        event=Event(
            review_id=before.id,
            position=after.position,
            event=event,
            actor=by,
            at=now,
            before=before.state,
            after=after.state,
            fingerprint=before.fingerprint,
            detail=said,
        ),
    )
