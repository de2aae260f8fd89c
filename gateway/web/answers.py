"""What callers get: the shapes of answers, and the headers that go with them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from gateway.core.inference import Answer, Attempt, CacheStatus, Decision, Inference, RateHeader, Usage
from gateway.core.prices import from_nano
from gateway.core.records import Run
from gateway.core.review_ports import RunOutcome
from gateway.web.reply import Headers


class UsageView(Struct, frozen=True):
    """Tokens, and their cost as an exact decimal in the deployment's currency."""

    input_tokens: int
    output_tokens: int
    cost: str


class AttemptView(Struct, frozen=True):
    """What one stage did. `reason` says why it passed or failed; `matched` names the rules that matched."""

    stage: str
    kind: str
    outcome: str
    label: str | None
    score: float | None
    reason: str | None
    duration_ms: float
    usage: UsageView
    label_mass: float | None = None
    matched: tuple[str, ...] = ()


class RunMetadata(Struct, frozen=True):
    """How a decision came about. `status` is accepted, deferred or failed; `action` is what to do with the item.

    In a batch, an input that got no answer has `error`: the problem document that it would have got alone. Its
    `run_id` is null where it never became a run.
    """

    run_id: str | None
    status: str
    action: str | None
    label: str | None
    score: float | None
    stage: str | None
    attempts: tuple[AttemptView, ...]
    cached: bool
    fingerprint: str
    usage: UsageView
    review_id: str | None
    reason: str | None
    trace_id: str | None
    error: dict[str, Any] | UnsetType = UNSET


class InvokeAnswer(Struct, frozen=True):
    """The decision's output (null where nobody could decide) and how it came about."""

    output: dict[str, Any] | None
    metadata: RunMetadata


class BatchMetadata(Struct, frozen=True):
    """One entry per input, in the order of the inputs."""

    run_ids: list[str | None]
    responses: list[RunMetadata]


class BatchAnswer(Struct, frozen=True):
    """One output per input, null where there is none."""

    output: list[dict[str, Any] | None]
    metadata: BatchMetadata


class RunAnswer(Struct, frozen=True):
    """A recorded run. `output` is left out where outputs are not kept; `review` says what became of a held item."""

    task: str
    kind: str
    caller_team: str
    owner_team: str
    payer_team: str
    received_at: str
    duration_ms: float
    metadata: RunMetadata
    parent_id: str | None = None
    review: RunOutcome | None = None
    output: dict[str, Any] | UnsetType = UNSET


_FREE = UsageView(0, 0, from_nano(0))


def of_inference(inference: Inference) -> RunMetadata:
    """The metadata of a fresh answer."""
    asked = inference.invocation
    return _metadata(
        asked.id, inference.decision, inference.attempts, inference.cache, asked.fingerprint,
        inference.usage, inference.review_id, asked.trace_id,
    )  # fmt: skip


def of_failure(error: Mapping[str, Any], fingerprint: str, trace_id: str) -> RunMetadata:
    """The metadata of a batch input that got no answer, from its problem document."""
    return RunMetadata(
        run_id=error.get("run_id"),
        status="failed",
        action=None,
        label=None,
        score=None,
        stage=None,
        attempts=(),
        cached=False,
        fingerprint=fingerprint,
        usage=_FREE,
        review_id=None,
        reason=error["code"],
        trace_id=trace_id,
        error=dict(error),
    )


def of_run(run: Run, review: RunOutcome | None) -> RunAnswer:
    """A run as it was recorded, and what people made of it."""
    metadata = _metadata(
        run.id, run.decision, run.attempts, run.cache, run.fingerprint, run.usage, run.review_id, run.trace_id
    )
    return RunAnswer(
        task=run.task,
        kind=run.kind,
        caller_team=run.caller_team,
        owner_team=run.owner_team,
        payer_team=run.payer_team,
        received_at=run.received_at.isoformat(),
        duration_ms=run.duration_ms,
        metadata=metadata,
        parent_id=run.parent_id,
        review=review,
        output=UNSET if run.decision.output is None else run.decision.output,
    )


def usage_view(usage: Usage) -> UsageView:
    """Nano-dollars become an exact decimal with nine places."""
    if not (usage.input_tokens or usage.output_tokens or usage.cost_nano):
        return _FREE
    return UsageView(usage.input_tokens, usage.output_tokens, from_nano(usage.cost_nano))


def answer_headers(headers: Headers, answer: Answer, total_ms: float) -> Headers:
    """The headers of an answered inference. `total_ms` is the time since the request began."""
    inference = answer.inference
    if (stage := inference.decision.stage) is not None:
        headers.append((b"x-gateway-stage", stage.encode()))
    headers.append((b"x-gateway-cache", inference.cache.encode()))
    headers.append((b"x-gateway-cost", from_nano(inference.usage.cost_nano).encode()))
    overhead_ms = max(0.0, total_ms - inference.upstream_ms)
    headers.append((b"x-gateway-overhead-ms", b"%.3f" % overhead_ms))
    if answer.replayed:
        headers.append((b"idempotent-replayed", b"true"))
    if answer.degraded:
        headers.append((b"x-gateway-degraded", b"quotas"))
    return rate_headers(headers, answer.rates)


def rate_headers(headers: Headers, rates: Iterable[RateHeader]) -> Headers:
    """The state of the tightest quota of each resource."""
    for rate in rates:
        resource = rate.resource.encode()
        headers.append((b"x-ratelimit-limit-" + resource, b"%d" % rate.limit))
        headers.append((b"x-ratelimit-remaining-" + resource, b"%d" % rate.remaining))
        headers.append((b"x-ratelimit-reset-" + resource, b"%d" % math.ceil(rate.reset_s)))
    return headers


def _metadata(
    run_id: str,
    decision: Decision,
    attempts: tuple[Attempt, ...],
    cache: CacheStatus,
    fingerprint: str,
    usage: Usage,
    review_id: str | None,
    trace_id: str | None,
) -> RunMetadata:
    return RunMetadata(
        run_id,
        decision.status,
        decision.action,
        decision.label,
        decision.score,
        decision.stage,
        tuple(_attempt(attempt) for attempt in attempts),
        cache in ("hit", "shared"),
        fingerprint,
        usage_view(usage),
        review_id,
        decision.reason,
        trace_id,
    )


def _attempt(attempt: Attempt) -> AttemptView:
    return AttemptView(
        attempt.stage,
        attempt.kind,
        attempt.outcome,
        attempt.label,
        attempt.score,
        attempt.reason,
        round(attempt.duration_ms, 3),
        usage_view(attempt.usage),
        attempt.label_mass,
        attempt.matched,
    )
