"""The audit sample: which runs are looked at again, though nobody doubts them, and what is known of each.

What a cheap stage cleared is asked of the LLM, in the share `[audit] sample`; what the LLM did not clear goes to
people, and of what it cleared the share `[audit] review`. What no cheap stage cleared and nobody holds, such as the
LLM's own clean ones, goes straight to people, in the share `[review] sample`. Held items are not drawn: people judge
them all.

A run is drawn by a hash of its id, so the draw can be made again by anybody, does not depend on the item, and cannot be
foreseen by whoever sends it. The probability of each step is kept with the sample: estimates divide by it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from msgspec import Struct

from gateway.core.inference import Decision, Inference, Sample
from gateway.core.reviews import Item, unit
from gateway.core.task import ChainStage, Task

Verdict = Literal["cleared", "flagged", "none"]
"""What the LLM makes of a sampled run; `none`: it could not say."""


class Drawn(Struct, frozen=True, kw_only=True):
    """A sampled run that waits. `input` is None once it was erased; `tries` counts those that were begun; `trace_id` is
    that of the run.
    """

    id: str
    task: str
    caller_team: str
    owner_team: str
    fingerprint: str
    subject_id: str | None
    stage: str
    score: float | None
    asks: Literal["llm", "people"]
    input: dict[str, Any] | None
    tries: int
    created_at: datetime
    trace_id: str | None = None


class Judged(Struct, frozen=True, kw_only=True):
    """What came of a sample: the audit and its verdict, and the question to people, with the probability of asking."""

    verdict: Verdict | None = None
    audit_id: str | None = None
    people_probability: float | None = None
    question: Item | None = None


class Samples(Protocol):
    """Where drawn runs wait. The ledger writes them with the inference, so none is lost with a process."""

    async def claim(self, now: datetime, until: datetime, limit: int) -> Sequence[Drawn]:
        """The longest waiting; nobody else claims them before `until`. Raises Unavailable."""

    async def postpone(self, id: str, until: datetime) -> None:
        """Nobody claims it before; the try that began does not count. Raises Unavailable."""

    async def settle(self, drawn: Drawn, judged: Judged) -> None:
        """Done; the text is forgotten here, and kept with the question if there is one. Raises Unavailable."""

    async def drop(self, id: str, reason: str) -> None:
        """It will never be looked at: counted, and its text forgotten. Raises Unavailable."""


def draw(task: Task, inference: Inference) -> Sample | None:
    """Whether a run is looked at again. Only what a stage decided is, and what nobody holds."""
    asked, decision = inference.invocation, inference.decision
    if asked.kind != "invoke" or task.positive is None or decision.status != "accepted":
        return None
    if decision.action == "review" or (sample := _share(task, decision)) is None:
        return None
    return sample if unit(asked.id, "audit sample") < sample.probability else None


def asks_people(run_id: str, verdict: Verdict, share: float) -> float | None:
    """The probability with which people are asked of an audited run; None where they are not."""
    probability = 1.0 if verdict == "flagged" else share
    return probability if unit(run_id, "audit review") < probability else None


def audits(task: Task) -> bool:
    """Whether the LLM can be asked what a cheap stage cleared."""
    return task.audit is not None and any(isinstance(s, ChainStage) and s.answer == "label" for s in task.stage)


def _share(task: Task, decision: Decision) -> Sample | None:
    by_llm = any(stage.name == decision.stage and isinstance(stage, ChainStage) for stage in task.stage)
    if task.audit is not None and audits(task) and not by_llm and decision.label != task.positive:
        return Sample("llm", task.audit.sample)
    return Sample("people", task.review.sample) if task.review is not None else None
