"""Inferences and intents as the engine makes them, for tests of what is written and read back."""

from datetime import UTC, datetime
from typing import Any

import uuid_utils

from gateway.core.inference import (
    Attempt,
    Attribution,
    Caller,
    Decision,
    Inference,
    Intent,
    Invocation,
    ModelCall,
    Usage,
)

CALLER = Caller("acme", "00112233445566aa", frozenset({"invoke"}))
ESTIMATE = Usage(500, 2, 50_000)
TRUTH = Usage(480, 1, 48_100)


def new_id() -> str:
    """A UUIDv7."""
    return str(uuid_utils.uuid7())


def now() -> datetime:
    """UTC, to the microsecond, as both databases keep it."""
    return datetime.now(UTC)


def invocation(**changed: Any) -> Invocation:
    """A request to the moderation task; any field may be given."""
    values: dict[str, Any] = {
        "id": new_id(),
        "task": "message-moderation",
        "fingerprint": "0123456789abcdef",
        "caller": CALLER,
        "owner_team": "trust-and-safety",
        "payer_team": "acme",
        "input": {"message": "Shall I come on Tuesday?"},
        "canonical": b'{"message":"Shall I come on Tuesday?"}',
        "received_at": now(),
        "attribution": Attribution("item-1", "thread-1", "subject-1", ("web", "beta")),
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    return Invocation(**{**values, **changed})


def intent(asked: Invocation, **changed: Any) -> Intent:
    """A model call about to be made for an invocation."""
    values: dict[str, Any] = {
        "id": new_id(),
        "inference_id": asked.id,
        "attempt_id": new_id(),
        "task": asked.task,
        "caller_team": asked.caller.team,
        "owner_team": asked.owner_team,
        "payer_team": asked.payer_team,
        "key_id": asked.caller.key_id,
        "kind": asked.kind,
        "model": "moderation-llm",
        "replica": "http://127.0.0.1:8090",
        "estimate": ESTIMATE,
        "created_at": now(),
    }
    return Intent(**{**values, **changed})


def inference(asked: Invocation | None = None, *intents: Intent, **changed: Any) -> Inference:
    """A deciding prefilter for no intents; otherwise one chain attempt per intent, each call settled at TRUTH."""
    asked = asked or invocation()
    values: dict[str, Any] = {
        "invocation": asked,
        "decision": Decision(
            status="accepted",
            action="deliver",
            output={"label": "clean", "policies": [], "severity": 0},
            label="clean",
            score=0.0125,
            stage="llm" if intents else "prefilter",
        ),
        "attempts": (_prefilter(asked, not intents), *(_chain(i, at) for i, at in enumerate(intents, 1))),
        "duration_ms": 1.5,
    }
    return Inference(**{**values, **changed})


def held(asked: Invocation, review_id: str) -> Inference:
    """An inference whose item a person must see."""
    decision = Decision(
        status="accepted",
        action="review",
        output={"label": "violation", "policies": ["off_platform"], "severity": 2},
        label="violation",
        score=0.93,
        stage="prefilter",
    )
    return inference(asked, decision=decision, review_id=review_id)


def _prefilter(asked: Invocation, decides: bool) -> Attempt:
    return Attempt(
        id=new_id(),
        position=0,
        stage="prefilter",
        kind="cnn",
        outcome="decided" if decides else "passed",
        started_at=asked.received_at,
        duration_ms=0.75,
        label="clean" if decides else None,
        score=0.0125,
        reason=None if decides else "unsure",
        matched=("greeting",),
    )


def _chain(position: int, made: Intent) -> Attempt:
    call = ModelCall(
        id=made.id,
        attempt_id=made.attempt_id,
        model=made.model,
        replica=made.replica,
        outcome="ok",
        settled=True,
        usage=TRUTH,
        started_at=made.created_at,
        duration_ms=30.5,
        http_status=200,
    )
    return Attempt(
        id=made.attempt_id,
        position=position,
        stage="llm",
        kind="chain",
        outcome="decided",
        started_at=made.created_at,
        duration_ms=31.0,
        label="clean",
        score=0.25,
        label_mass=0.98,
        calls=(call,),
    )
