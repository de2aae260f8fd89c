"""Core's values → rows of the ledger's tables, in the order of their columns.

Plain tuples: this runs for every inference, and the writers hand them to the drivers as they are.
"""

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct, field

from gateway.adapters.sql import tables
from gateway.core import idempotency
from gateway.core.holds import item_of, policies_of
from gateway.core.inference import Attempt, Inference, Intent, ModelCall, Sample
from gateway.core.reviews import Item

# How long the same Idempotency-Key is known to name this run.
IDEMPOTENCY_TTL = timedelta(hours=24)

# How a driver wants a point in time.
ToInstant = Callable[[datetime], Any]


class Rows(Struct):
    """What one transaction writes: rows by table, and the ids of the intents that it settles."""

    intent: list[tuple[Any, ...]] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)
    inference: list[tuple[Any, ...]] = field(default_factory=list)
    attempt: list[tuple[Any, ...]] = field(default_factory=list)
    model_call: list[tuple[Any, ...]] = field(default_factory=list)
    review_item: list[tuple[Any, ...]] = field(default_factory=list)
    review: list[tuple[Any, ...]] = field(default_factory=list)
    review_text: list[tuple[Any, ...]] = field(default_factory=list)
    audit_sample: list[tuple[Any, ...]] = field(default_factory=list)
    idempotency: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def single_table(self) -> bool:
        """Whether intents, or inferences without anything else, are all that is written."""
        written = [name for name in self.__struct_fields__ if getattr(self, name)]
        return written in (["intent"], ["inference"])


COLUMNS = {
    name: tuple(tables.metadata.tables[name].columns.keys()) for name in Rows.__struct_fields__ if name != "settled"
}


def rows_of(items: Iterable[Intent | Inference], instant: ToInstant) -> Rows:
    """Everything that these items write. Raises ValueError, TypeError or AttributeError for a broken value."""
    rows = Rows()
    for item in items:
        if isinstance(item, Intent):
            rows.intent.append(_intent(item, instant))
        else:
            _add_inference(rows, item, instant)
    # Batches that lock the same items lock them in the same order.
    rows.review_item.sort(key=_join_key)
    return rows


def _add_inference(rows: Rows, inference: Inference, instant: ToInstant) -> None:
    asked = inference.invocation
    input_hash = hashlib.sha256(asked.canonical).digest()
    received_at = instant(asked.received_at)
    rows.inference.append(_inference(inference, input_hash, received_at))
    for attempt in inference.attempts:
        rows.attempt.append(_attempt(inference, attempt, instant))
        for call in attempt.calls:
            rows.model_call.append(_model_call(inference, attempt, call, instant))
            rows.settled.append(call.id)
    if inference.review_id is not None and inference.decision.action == "review" and asked.kind == "invoke":
        item = item_of(inference, inference.review_id)
        rows.review_item.append(item_row(item, instant))
        rows.review.append(_review(inference, item, input_hash, instant))
        text = asked.canonical.decode()
        rows.review_text.append((inference.review_id, asked.attribution.subject_id, text, received_at, None))
    if inference.sample is not None:
        rows.audit_sample.append(_audit_sample(inference, inference.sample, received_at))
    if asked.idempotency_key is not None and inference.decision.status != "failed":
        rows.idempotency.append(_idempotency(inference, asked.idempotency_key, input_hash, instant))


def _inference(inference: Inference, input_hash: bytes, received_at: Any) -> tuple[Any, ...]:
    asked, decision, usage, said = (
        inference.invocation,
        inference.decision,
        inference.usage,
        inference.invocation.attribution,
    )
    policies, severity = policies_of(decision)
    return (
        asked.id,
        asked.kind,
        asked.parent_id,
        asked.task,
        asked.fingerprint,
        asked.caller.team,
        asked.owner_team,
        asked.payer_team,
        asked.caller.key_id,
        said.item_id,
        said.thread_id,
        said.subject_id,
        to_json(said.tags),
        input_hash,
        asked.idempotency_key,
        inference.cache,
        decision.status,
        decision.action,
        decision.label,
        to_json(policies),
        severity,
        decision.score,
        decision.stage,
        decision.reason,
        usage.input_tokens,
        usage.output_tokens,
        usage.cost_nano,
        inference.duration_ms,
        inference.upstream_ms,
        asked.trace_id,
        inference.review_id,
        received_at,
    )


def _attempt(inference: Inference, attempt: Attempt, instant: ToInstant) -> tuple[Any, ...]:
    usage = attempt.usage
    return (
        attempt.id,
        inference.id,
        inference.invocation.task,
        attempt.position,
        attempt.stage,
        attempt.kind,
        attempt.outcome,
        attempt.label,
        attempt.score,
        attempt.label_mass,
        attempt.reason,
        to_json(attempt.matched),
        usage.input_tokens,
        usage.output_tokens,
        usage.cost_nano,
        instant(attempt.started_at),
        attempt.duration_ms,
    )


def _model_call(inference: Inference, attempt: Attempt, call: ModelCall, instant: ToInstant) -> tuple[Any, ...]:
    asked = inference.invocation
    return (
        call.id,
        attempt.id,
        asked.id,
        asked.kind,
        asked.task,
        attempt.stage,
        asked.caller.team,
        asked.owner_team,
        asked.payer_team,
        asked.caller.key_id,
        call.model,
        call.replica,
        call.outcome,
        call.settled,
        call.usage.input_tokens,
        call.usage.output_tokens,
        call.usage.cost_nano,
        call.http_status,
        instant(call.started_at),
        call.duration_ms,
        call.gpu_hour_nano,
        call.usage.provisional_nano,
    )


def _intent(intent: Intent, instant: ToInstant) -> tuple[Any, ...]:
    return (
        intent.id,
        intent.inference_id,
        intent.attempt_id,
        intent.kind,
        intent.task,
        intent.caller_team,
        intent.owner_team,
        intent.payer_team,
        intent.key_id,
        intent.model,
        intent.replica,
        intent.estimate.input_tokens,
        intent.estimate.output_tokens,
        intent.estimate.cost_nano,
        instant(intent.created_at),
        intent.gpu_hour_nano,
        intent.estimate.provisional_nano,
    )


def _review(inference: Inference, item: Item, input_hash: bytes, instant: ToInstant) -> tuple[Any, ...]:
    """The last column is the key of the item that it joins: the statement finds the item's id."""
    asked, decision = inference.invocation, inference.decision
    return (
        item.id,
        asked.id,
        asked.task,
        asked.fingerprint,
        asked.caller.team,
        asked.owner_team,
        input_hash,
        asked.attribution.thread_id,
        asked.attribution.subject_id,
        decision.status,
        decision.label,
        to_json(item.policies),
        item.severity,
        decision.score,
        decision.stage,
        decision.reason,
        instant(asked.received_at),
        instant(item.due_at),
        item.join_key,
    )


def item_row(item: Item, instant: ToInstant) -> tuple[Any, ...]:
    """A question that nobody has judged yet."""
    changed = {"policies": to_json(item.policies), "barred": " ".join(item.barred)}
    values = (changed.get(name, getattr(item, name)) for name in COLUMNS["review_item"])
    return tuple(instant(value) if isinstance(value, datetime) else value for value in values)


def _join_key(row: tuple[Any, ...]) -> bytes:
    key: bytes = row[COLUMNS["review_item"].index("join_key")]
    return key


def _audit_sample(inference: Inference, sample: Sample, received_at: Any) -> tuple[Any, ...]:
    """It waits from now on; what comes of it is written later."""
    asked, decision = inference.invocation, inference.decision
    return (
        asked.id,
        asked.task,
        asked.fingerprint,
        asked.caller.team,
        asked.owner_team,
        asked.attribution.subject_id,
        decision.stage,
        decision.label,
        decision.score,
        sample.asks,
        sample.probability,
        asked.canonical.decode(),
        "waiting",
        received_at,
        0,
        received_at,
        *(None,) * 5,
    )


def _idempotency(inference: Inference, key: str, input_hash: bytes, instant: ToInstant) -> tuple[Any, ...]:
    asked = inference.invocation
    return (
        asked.caller.team,
        asked.task,
        key,
        input_hash,
        asked.id,
        instant(asked.received_at),
        instant(asked.received_at + IDEMPOTENCY_TTL),
        idempotency.pack(inference),
    )


def to_json(words: tuple[str, ...]) -> str | None:
    """A JSON array, or NULL for an empty one: most rows have none."""
    return msgspec.json.encode(words).decode() if words else None
