"""Idempotency-Key: the same key and input is answered once; whoever asks again gets what was recorded.

A key belongs to a team and a task for 24 hours. It is claimed durably before anything runs, so of any number of equal
requests, at any number of replicas, one runs and the others wait for its answer. What failed is not remembered: the key
may be used again at once. A claim whose process died ends with its lease.
"""

import asyncio
import hashlib
from typing import Protocol

import msgspec
from msgspec import Struct, structs

from gateway.core.clock import Clock
from gateway.core.errors import Conflict
from gateway.core.inference import Attempt, CacheStatus, Decision, Inference, Invocation

# The time after which the key of a process that died may be used again; more where an answer may take that long.
LEASE_S = 120.0
_POLL_S = 0.05
_RECORDED_S = 15.0


class Outcome(Struct, frozen=True, kw_only=True):
    """What is kept of an inference to answer with it again. The text that was judged is not in it."""

    run_id: str
    fingerprint: str
    decision: Decision
    attempts: tuple[Attempt, ...]
    cache: CacheStatus
    review_id: str | None
    trace_id: str | None


class Claimed(Struct, frozen=True):
    """Who holds a key, for which input; `outcome` is None while the answer is under way."""

    run_id: str
    input_hash: bytes
    outcome: bytes | None


class Claims(Protocol):
    """Who has claimed which key, durably."""

    async def claim(self, invocation: Invocation, lease_s: float) -> Claimed:
        """Claim the key of this invocation, unless it is held: who holds it now. Raises Unavailable."""

    async def release(self, invocation: Invocation) -> None:
        """Give up a claim that has no outcome. Raises Unavailable."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Outcome).decode


def input_hash(invocation: Invocation) -> bytes:
    """What tells one input from another."""
    return hashlib.sha256(invocation.canonical).digest()


def pack(inference: Inference) -> bytes:
    """An inference to the bytes that are kept under its key."""
    asked = inference.invocation
    return _encode(
        Outcome(
            run_id=asked.id,
            fingerprint=asked.fingerprint,
            decision=inference.decision,
            attempts=inference.attempts,
            cache=inference.cache,
            review_id=inference.review_id,
            trace_id=asked.trace_id,
        )
    )


async def replay(claims: Claims, invocation: Invocation, clock: Clock, patience_s: float) -> Inference | None:
    """What was recorded under the key, or None where it is now this invocation's to answer.

    `patience_s` is the longest that an answer may take. Raises Conflict for a key of another input, or one whose answer
    takes longer than that; Unavailable.
    """
    give_up_s = clock.monotonic_s() + patience_s
    # A claim that ended while its run goes on would let a second one begin. It counts from when the request came, which
    # may wait for the first with this key, then for an equal run elsewhere, then run itself, and be recorded.
    lease_s = max(LEASE_S, 3 * patience_s + _RECORDED_S)
    while (held := await claims.claim(invocation, lease_s)).run_id != invocation.id:
        if held.input_hash != input_hash(invocation):
            raise Conflict("This Idempotency-Key was used with another input.")
        if held.outcome is not None:
            return _again(_decode(held.outcome), invocation)
        if clock.monotonic_s() > give_up_s:
            raise Conflict("The first request with this Idempotency-Key is still under way.", retry_after_s=1)
        await asyncio.sleep(_POLL_S)
    return None


def _again(kept: Outcome, invocation: Invocation) -> Inference:
    asked = structs.replace(invocation, id=kept.run_id, fingerprint=kept.fingerprint, trace_id=kept.trace_id)
    return Inference(
        invocation=asked,
        decision=kept.decision,
        attempts=kept.attempts,
        cache=kept.cache,
        review_id=kept.review_id,
    )
