"""What the reviewer's page shows of a case, in the order in which it is read."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from gateway.core.desk import Case
from gateway.core.inference import Caller
from gateway.core.loaded import LoadedTask

WORST = 3
_KEYS = "123456789"


class PolicyView(Struct, frozen=True):
    """A policy of the task. `named`: the machine says that the item breaks it. `key` ticks it."""

    name: str
    severity: int
    paragraphs: tuple[str, ...]
    named: bool
    key: str


class CaseView(Struct, frozen=True, kw_only=True):
    """A case as the template reads it. `blur` is 1 to 3, and 0 once revealed. `input` is None once it was erased. Its
    lease is renewed every `renew_s` while somebody reads.

    Of what kind it is, and what others said of it, is not here: who judges, judges blind.
    """

    id: str
    task: str
    token: str
    input: Mapping[str, Any] | None
    blur: int
    severity: int | None
    score: float | None
    stage: str | None
    label: str | None
    reason: str | None
    thread_id: str | None
    runs: int
    due_at: datetime
    renew_s: int
    stages: tuple[Mapping[str, Any], ...]
    policies: Sequence[PolicyView]


def case_view(case: Case, task: LoadedTask | None, now: datetime, *, revealed: bool) -> CaseView:
    """`task` is None where it is no longer served."""
    item, question = case.item, case.question
    return CaseView(
        id=item.id,
        task=item.task,
        token=item.lease_token or "",
        input=_ordered(question.input, task),
        blur=0 if revealed else item.severity or WORST,
        severity=item.severity,
        score=item.score,
        stage=item.stage,
        label=question.label,
        reason=question.reason,
        thread_id=question.thread_id,
        runs=item.runs,
        due_at=item.due_at,
        renew_s=_renew_s(item.lease_until, now),
        stages=question.stages,
        policies=_policies(task, item.policies) if task else (),
    )


def may_judge(caller: Caller) -> bool:
    """Administrators look after keys and teams; the texts are for reviewers."""
    return not caller.scopes.isdisjoint(("review", "lead"))


def _renew_s(lease_until: datetime | None, now: datetime) -> int:
    """A third of what is left: two answers may be lost before the lease is."""
    return max(1, int((lease_until - now).total_seconds() / 3)) if lease_until else 1


def _ordered(given: Mapping[str, Any] | None, task: LoadedTask | None) -> Mapping[str, Any] | None:
    """In the order of the task's schema, so that the same thing stands at the same place in every case."""
    if given is None or task is None:
        return given
    known = [name for name in task.input_schema.get("properties", {}) if name in given]
    return {name: given[name] for name in (*known, *(name for name in given if name not in known))}


def _policies(task: LoadedTask, named: Sequence[str]) -> Sequence[PolicyView]:
    """Those that the machine names come first."""
    ordered = sorted(task.declared.policy.items(), key=lambda each: each[0] not in named)
    keys = (*_KEYS, *[""] * len(ordered))
    return [
        PolicyView(name, policy.severity, _paragraphs(task.policy_texts.get(name, "")), name in named, key)
        for (name, policy), key in zip(ordered, keys, strict=False)
    ]


def _paragraphs(text: str) -> tuple[str, ...]:
    """Markdown's paragraphs without its title and its stars."""
    blocks = (block.strip() for block in text.replace("**", "").split("\n\n"))
    return tuple(block for block in blocks if block and not block.startswith("#"))
