"""What follows from a judgement: second opinions, the third that settles between two, appeals, known items.

The machine's recommendation and the outcome may be looked at again by others; who judged once never judges again.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from gateway.core.audit import Actor
from gateway.core.errors import Conflict
from gateway.core.review_rules import amend, uphold
from gateway.core.reviews import Change, Decided, Event, Item, Kind, Rule, rank_of, risk_of, unit
from gateway.core.task import Review

NewId = Callable[[], str]


def ask_again(root: Item, kind: Kind, new_id: str, now: datetime) -> Item:
    """The same question, put to others than those who judged it. No clock answers it."""
    due_at = now + (root.due_at - root.created_at)
    return Item(
        id=new_id,
        kind=kind,
        root_id=root.id,
        task=root.task,
        caller_team=root.caller_team,
        owner_team=root.owner_team,
        fingerprint=root.fingerprint,
        runs=root.runs,
        severity=root.severity,
        score=root.score,
        policies=root.policies,
        stage=root.stage,
        recommended=root.recommended,
        created_at=now,
        due_at=due_at,
        rank_at=rank_of(now, due_at, risk_of(root.severity, root.score)),
        barred=root.barred,
    )


def looked_at_twice(item: Item, declared: Review) -> bool:
    """Whether another person decides a decided item again, without seeing the first decision."""
    if item.kind != "held" or item.outcome is None:
        return False
    floor = declared.second_severity
    grave = floor is not None and item.outcome == "block" and (item.severity or 0) >= floor
    return grave or unit(item.id, "second") < declared.second


def followed(change: Change, declared: Review, new_id: NewId) -> Change:
    """The change with what its decision leads to."""
    item, by, now = change.item, change.event.actor, change.event.at
    if item.state != "decided" or item.decision is None:
        return change
    if looked_at_twice(item, declared):
        return replace(change, ask=(ask_again(item, "second", new_id(), now),))
    if item.kind in ("second", "third", "appeal"):
        return replace(change, on_root=_compared(item, item.decision, by, now, new_id))
    return change


def appeal(root: Item, by: Actor, now: datetime, reason: str, new_id: str) -> Change:
    """The caller disagrees: another reviewer judges anew. Once per item. Raises Conflict."""
    if root.kind != "held" or root.outcome is None or root.state not in ("decided", "expired"):
        raise Conflict("There is no outcome to appeal against.", state=root.state)
    if root.appealed:
        raise Conflict("This item was appealed before.", state=root.state)
    if root.undo_until is not None and now < root.undo_until:
        raise Conflict("This decision can still be undone.", retry_after_s=(root.undo_until - now).total_seconds())
    change = noted(replace(root, appealed=True), "appealed", by, now, note=reason, review_id=new_id)
    return replace(change, ask=(ask_again(root, "appeal", new_id, now),))


def mark_gold(item: Item, by: Actor, now: datetime) -> Change:
    """From now on reviewers are asked this again, and its outcome counts as known. Raises Conflict."""
    if item.kind != "held" or item.outcome is None or item.gold:
        raise Conflict("Only a decided item becomes a known one, and only once.", state=item.state)
    return noted(replace(item, gold=True), "gold_marked", by, now)


def ask_gold(root: Item, by: Actor, key_id: str, now: datetime, new_id: str) -> Change:
    """Put a known item to a reviewer, who will not get it again."""
    child = replace(ask_again(root, "gold", new_id, now), barred=())
    change = noted(replace(root, barred=(*root.barred, key_id)), "gold_asked", by, now, review_id=new_id)
    return replace(change, ask=(child,))


def noted(item: Item, event: str, by: Actor, now: datetime, **detail: Any) -> Change:
    """Something happened that leaves the state as it is."""
    after = replace(item, position=item.position + 1)
    said = Event(
        review_id=item.id, position=after.position, event=event, actor=by, at=now,
        before=item.state, after=item.state, fingerprint=item.fingerprint, detail=detail,
    )  # fmt: skip
    return Change(item=after, event=said)


def _compared(child: Item, decided: Decided, by: Actor, now: datetime, new_id: NewId) -> Rule:
    """What a judgement does to the one that stands. The reviewer of the child judges the root no more."""

    def rule(root: Item) -> Change:
        root = replace(root, barred=tuple(dict.fromkeys((*root.barred, *child.barred))))
        if root.outcome in (None, decided.outcome):
            return uphold(root, by, now, child.kind, child.id)
        if child.kind == "second":
            third = new_id()
            change = noted(root, "disputed", by, now, outcome=decided.outcome, second_id=child.id, third_id=third)
            return replace(change, ask=(ask_again(root, "third", third, now),))
        return amend(root, decided, by, now, child.kind, child.id)

    return rule
