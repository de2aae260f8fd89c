"""What reviewers see of an item. Its kind, and what others said of it, only leads see: the rest judge blind."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from gateway.core.desk import Case
from gateway.core.review_ports import Depth
from gateway.core.reviews import Event, Item, Reviewer


class DecisionView(Struct, frozen=True):
    """`agrees` compares the machine's view: right, wrong_policy, wrong_action, or unguided where it had none."""

    outcome: str
    policies: tuple[str, ...]
    reason: str | None
    by: str | None
    at: datetime
    agrees: str
    revision: int


class ItemView(Struct, frozen=True, kw_only=True):
    """An item. `policies`, `severity` and `score` are the machine's. `kind` and others' decisions are for leads."""

    id: str
    task: str
    caller_team: str
    state: str
    severity: int | None
    score: float | None
    policies: tuple[str, ...]
    stage: str | None
    runs: int
    fingerprint: str
    created_at: datetime
    due_at: datetime
    on_expiry: str | None
    lease_until: datetime | None
    undo_until: datetime | None
    decision: DecisionView | None
    kind: str | None = None


class CaseView(Struct, frozen=True, kw_only=True):
    """An item with what is judged. `token` is null unless the lease is the asker's own; `input` is null once erased."""

    review: ItemView
    token: str | None
    input: Mapping[str, Any] | None
    label: str | None
    reason: str | None
    thread_id: str | None
    stages: tuple[Mapping[str, Any], ...]


class NextView(Struct, frozen=True):
    """`next` is null where nothing waits that the reviewer may judge."""

    next: CaseView | None


class ItemList(Struct, frozen=True):
    """Items, newest first. `next` is the `before` of the next page, null where there is none."""

    reviews: list[ItemView]
    next: str | None


class Depths(Struct, frozen=True):
    """The queues, by task. `at_risk`: due within a quarter of an hour, or overdue."""

    queues: list[Depth]


class EventView(Struct, frozen=True):
    """One step. `by_team` and `by_key` name who took it; the key `clock` is a deadline."""

    position: int
    event: str
    at: datetime
    by_team: str | None
    by_key: str | None
    before: str
    after: str
    fingerprint: str
    detail: Mapping[str, Any]


class History(Struct, frozen=True):
    """Every step, oldest first."""

    events: list[EventView]


def of_item(item: Item, by: Reviewer) -> ItemView:
    """An item as `by` may see it."""
    decided = item.decision if item.outcome is not None else None
    shown = decided is not None and (by.lead or decided.by.key_id == by.key_id)
    return ItemView(
        id=item.id,
        task=item.task,
        caller_team=item.caller_team,
        state=item.state,
        severity=item.severity,
        score=item.score,
        policies=item.policies,
        stage=item.stage,
        runs=item.runs,
        fingerprint=item.fingerprint,
        created_at=item.created_at,
        due_at=item.due_at,
        on_expiry=item.on_expiry if by.lead else None,
        lease_until=item.lease_until,
        undo_until=item.undo_until if shown else None,
        decision=_decision(item) if shown else None,
        kind=item.kind if by.lead else None,
    )


def of_case(case: Case, by: Reviewer) -> CaseView:
    """An item with its text, as the desk masked it."""
    item, question = case.item, case.question
    return CaseView(
        review=of_item(item, by),
        token=item.lease_token if item.lease_key == by.key_id else None,
        input=question.input,
        label=question.label,
        reason=question.reason,
        thread_id=question.thread_id,
        stages=question.stages,
    )


def of_event(event: Event) -> EventView:
    """A step."""
    by = event.actor
    return EventView(
        event.position, event.event, event.at, by.team, by.key_id, event.before, event.after, event.fingerprint,
        event.detail,
    )  # fmt: skip


def _decision(item: Item) -> DecisionView | None:
    said = item.decision
    if said is None:
        return None
    return DecisionView(said.outcome, said.policies, said.reason, said.by.key_id, said.at, said.agrees, said.revision)
