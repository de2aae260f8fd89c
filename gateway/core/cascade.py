"""Stages in order: the first that may decide, and is sure, decides; a stage that fails leaves it to the next.

A stage finds (`Finding`); whether that is enough to decide is judged here, in one place, from what the task declares,
for serving and for the lab alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import structlog
from msgspec import Struct, field

from gateway.core.clock import Clock
from gateway.core.errors import BudgetExceeded, Unavailable
from gateway.core.inference import Attempt, Decision, Inference, Invocation
from gateway.core.meter import Meter
from gateway.core.task import ChainStage, RulesStage, Stage, Task

log = structlog.get_logger()


class Finding(Struct, frozen=True, kw_only=True):
    """What a stage has to say of an item.

    `score` is the calibrated probability of the task's positive label, or of `label` where the task has none.
    `label` is None where a threshold on the score says it, or where the stage has no opinion (then `reason` says why).
    """

    label: str | None = None
    score: float | None = None
    output: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    label_mass: float | None = None
    matched: tuple[str, ...] = ()


class StageFailed(Exception):
    """A stage could not do its work. `reason` is a stable word that callers see, such as `model_timeout`."""

    def __init__(self, reason: str, detail: str = "", label_mass: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.label_mass = label_mass
        self.begun = False
        """A part of the answer has been heard already."""


class Runner(Protocol):
    """The working part of a stage."""

    async def run(self, item: Mapping[str, Any], meter: Meter) -> Finding:
        """Look at a validated input. Model calls go through `meter`. Raises StageFailed."""


class Step(Struct, frozen=True):
    """A declared stage and what runs it."""

    stage: Stage
    runner: Runner


class Verdict(Struct, frozen=True):
    """Whether the stage decides; with which `label`, unless its answer is text or JSON; if not, why it passes."""

    decides: bool
    label: str | None = None
    reason: str | None = None


class Outcome(Struct, frozen=True):
    """All attempts, and the decision made of them."""

    attempts: tuple[Attempt, ...]
    decision: Decision


async def run(task: Task, steps: Sequence[Step], item: Mapping[str, Any], meter: Meter, clock: Clock) -> Outcome:
    """Run the stages until one decides. Never raises for what a stage does: a broken stage is a failed attempt."""
    attempts: list[Attempt] = []
    for step in steps:
        attempt, finding = await _attempt(task, step, item, meter, clock, len(attempts))
        attempts.append(attempt)
        if attempt.outcome == "decided":
            return Outcome(tuple(attempts), _accepted(task, attempt, finding))
    return Outcome(tuple(attempts), _undecided(task, attempts))


async def run_unasked(
    task: Task, steps: Sequence[Step], invocation: Invocation, meter: Meter, clock: Clock
) -> Inference:
    """Run the stages for ourselves: no caller waits, and the answer is neither looked up nor kept."""
    start_s = clock.monotonic_s()
    outcome = await run(task, steps, invocation.input, meter, clock)
    return Inference(
        invocation=invocation,
        decision=outcome.decision,
        attempts=outcome.attempts,
        cache="off",
        duration_ms=clock.since_ms(start_s),
    )


def judge(task: Task, stage: Stage, finding: Finding) -> Verdict:
    """What a finding amounts to under the task's thresholds and the labels that the stage may decide."""
    label, reason = finding.label, finding.reason
    if isinstance(stage, ChainStage) and stage.answer != "label":
        # What a chain hands over of such an answer has been checked against the output schema.
        return Verdict(reason is None, reason=reason)
    if not isinstance(stage, RulesStage) and finding.score is not None and label is None:
        label, reason = _by_threshold(task, stage, finding.score)
    if label is None:
        return Verdict(False, reason=reason or "no_opinion")
    if stage.decides is not None and label not in stage.decides:
        return Verdict(False, reason="may_not_decide")
    return Verdict(True, label)


def negative_label(task: Task) -> str | None:
    """The other label of a task with a positive one, as its stages and actions name it."""
    named = {label for stage in task.stage for label in getattr(stage, "labels", {})} | set(task.actions)
    others = sorted(named - {task.positive, "deferred"})
    return others[0] if task.positive is not None and len(others) == 1 else None


def _by_threshold(task: Task, stage: Any, score: float) -> tuple[str | None, str | None]:
    if stage.accept_above is not None and score >= stage.accept_above:
        return task.positive, None
    if stage.accept_below is not None and score < stage.accept_below:
        return negative_label(task), None
    return None, "unsure"


async def _attempt(
    task: Task, step: Step, item: Mapping[str, Any], meter: Meter, clock: Clock, position: int
) -> tuple[Attempt, Finding]:
    attempt_id, started_at, start_s = clock.new_id(), clock.now(), clock.monotonic_s()
    meter.begin(attempt_id)
    found, broken = Finding(), True
    try:
        found, broken = await step.runner.run(item, meter), False
    except BudgetExceeded:
        found, broken = Finding(reason="budget_exceeded"), False
    except Unavailable:
        found = Finding(reason="store_unavailable")
    except StageFailed as failed:
        found = Finding(reason=failed.reason, label_mass=failed.label_mass)
        log.warning("stage_failed", task=meter.invocation.task, stage=step.stage.name, reason=str(failed))
    except Exception:
        found = Finding(reason="stage_error")
        log.exception("stage_broken", task=meter.invocation.task, stage=step.stage.name)
    verdict = judge(task, step.stage, found)
    attempt = Attempt(
        id=attempt_id,
        position=position,
        stage=step.stage.name,
        kind=_kind(step.stage),
        outcome="failed" if broken else "decided" if verdict.decides else "passed",
        started_at=started_at,
        duration_ms=clock.since_ms(start_s),
        label=verdict.label or found.label,
        score=found.score,
        label_mass=found.label_mass,
        reason=verdict.reason,
        matched=found.matched,
        calls=meter.end(),
    )
    return attempt, found


def _kind(stage: Stage) -> Literal["rules", "cnn", "chain"]:
    kind: Literal["rules", "cnn", "chain"] = stage.__struct_config__.tag  # type: ignore[assignment]
    return kind


def _accepted(task: Task, attempt: Attempt, finding: Finding) -> Decision:
    output: dict[str, Any] = {"label": attempt.label} if attempt.label is not None else {}
    output.update(finding.output)
    if task.policy:
        policies = [name for name in output.get("policies", ()) if name in task.policy]
        positive = attempt.label == task.positive
        output["policies"] = policies if positive else []
        output["severity"] = _severity(task, policies) if positive else 0
    return Decision(
        status="accepted",
        action=task.actions.get(attempt.label or ""),
        output=output,
        label=attempt.label,
        score=attempt.score,
        stage=attempt.stage,
    )


def _severity(task: Task, policies: Sequence[str]) -> int:
    """The gravest of the policies named; a violation that no policy is named for counts as the mildest."""
    return max((task.policy[name].severity for name in policies), default=1)


def _undecided(task: Task, attempts: Sequence[Attempt]) -> Decision:
    """Nobody decided: a person does where the task says what happens to the item meanwhile."""
    last = attempts[-1]
    scored = next((a for a in reversed(attempts) if a.score is not None), None)
    return Decision(
        status="deferred" if task.actions else "failed",
        action=task.actions.get("deferred"),
        score=scored.score if scored else None,
        reason=last.reason,
    )
