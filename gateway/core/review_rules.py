"""What may happen to an item, as pure functions.

Each rule takes the item as it stands and returns the Change to write: the item as it becomes, and the event that says
so. What is not allowed raises, and nothing is written.
"""

import hmac
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from gateway.core.audit import Actor
from gateway.core.errors import Conflict, Forbidden
from gateway.core.reviews import (
    CLOCK,
    LEASE,
    SKIPS,
    Agreement,
    Change,
    Decided,
    Event,
    Item,
    Kind,
    Outcome,
    Reviewer,
    Ruling,
    State,
    rank_of,
)


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
