"""From a held run to a question: its deadline, what a clock may do then, and which questions are the same."""

import hashlib
import re
from datetime import datetime, timedelta

from gateway.core.inference import Decision, Hold, Inference
from gateway.core.reviews import Item, Outcome, rank_of, risk_of
from gateway.core.task import Review
from gateway.core.text import fold

NEAR_BITS = 12
"""Two texts whose sketches differ in at most so many of 64 bits are nearly the same."""
_SKETCHED_CHARS = 2000
_POLICY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_UNDECLARED = Review()


def hold_of(decision: Decision, declared: Review | None, received_at: datetime) -> Hold:
    """The deadline of an item that is held now, and what happens then if nobody decided."""
    review = declared or _UNDECLARED
    on_expiry = review.on_expiry
    if on_expiry == "deliver" and not is_scored(decision):
        # What an error held is never delivered by a clock.
        on_expiry = "escalate"
    return Hold(received_at + timedelta(minutes=review.sla_minutes), on_expiry)


def is_scored(decision: Decision) -> bool:
    """Whether a stage really judged the item: it decided, or found its score between the thresholds."""
    return decision.score is not None and (decision.status == "accepted" or decision.reason == "unsure")


def item_of(inference: Inference, review_id: str) -> Item:
    """The question that a held run puts. Runs of a team with the same input put the same one, while it waits."""
    asked, decision = inference.invocation, inference.decision
    hold = inference.hold or hold_of(decision, None, asked.received_at)
    policies, severity = policies_of(decision)
    recommended: Outcome | None = "block" if decision.status == "accepted" else None
    return Item(
        id=review_id,
        kind="held",
        root_id=review_id,
        task=asked.task,
        caller_team=asked.caller.team,
        owner_team=asked.owner_team,
        fingerprint=asked.fingerprint,
        join_key=join_key(asked.task, asked.caller.team, asked.canonical),
        # Only what a clock may deliver is ever compared.
        near=sketch(_text(inference)) if hold.on_expiry == "deliver" else None,
        severity=severity,
        score=decision.score,
        policies=policies,
        stage=decision.stage,
        recommended=recommended,
        created_at=asked.received_at,
        due_at=hold.due_at,
        on_expiry=hold.on_expiry,
        rank_at=rank_of(asked.received_at, hold.due_at, risk_of(severity, decision.score)),
    )


def policies_of(decision: Decision) -> tuple[tuple[str, ...], int | None]:
    """Policies and severity of an output that has both. Only what can be a policy's name is kept: outputs of other
    tasks may hold text, and text is kept nowhere here.
    """
    output = decision.output or {}
    severity = output.get("severity")
    if not isinstance(severity, int) or isinstance(severity, bool) or not 0 <= severity <= 3:
        return (), None
    policies = output.get("policies")
    names = policies if isinstance(policies, list | tuple) else ()
    return tuple(name for name in names if isinstance(name, str) and _POLICY.fullmatch(name)), severity


def join_key(task: str, team: str, canonical: bytes) -> bytes:
    """What tells one question from another: who asks what of which task."""
    return hashlib.sha256(b"\x00".join((task.encode(), team.encode(), canonical))).digest()


def sketch(text: str) -> int:
    """A signed number of 64 bits whose bits hardly change where the text hardly does: Charikar's similarity hash,
    over runs of four characters of the folded text (https://dl.acm.org/doi/10.1145/509907.509965).
    """
    folded = "".join(fold(text[:_SKETCHED_CHARS]).split())
    grams = {folded[i : i + 4] for i in range(max(1, len(folded) - 3))}
    counts = [0] * 64
    for gram in grams:
        bits = int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big")
        for i in range(64):
            counts[i] += 1 if bits >> i & 1 else -1
    value = sum(1 << i for i, count in enumerate(counts) if count > 0)
    return value - (1 << 64) if value >> 63 else value


def nearly_same(one: int, other: int) -> bool:
    """Whether two sketches are of nearly the same text."""
    return ((one ^ other) & (2**64 - 1)).bit_count() <= NEAR_BITS


def _text(inference: Inference) -> str:
    return " ".join(value for value in inference.invocation.input.values() if isinstance(value, str))
