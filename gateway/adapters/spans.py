"""From the record of an inference to OpenTelemetry spans, under the GenAI semantic conventions where they have a word.

    inference <task>                      SERVER    from the request's first byte
    ├── admit and cache                   quotas and the kept answer: one round trip
    ├── attempt <stage>                   rules and cnn
    ├── <operation> <model>               CLIENT    a chain's attempt, over all its retries
    │   ├── reserve                       budgets and the intent
    │   └── call <host>                   CLIENT    one request on the wire; TGI sees it as its parent
    ├── record                            until the ledger's rows are durable
    └── keep                              what is held is given back, and the answer kept

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from gateway.adapters.otel import RecordIds
from gateway.core.clock import Clock
from gateway.core.errors import GatewayError, Overloaded
from gateway.core.inference import Answer, Attempt, Inference, Invocation, ModelCall
from gateway.core.loaded import LoadedTask
from gateway.core.task import ChainStage, Model
from gateway.core.trace import span_context, span_id, trace_of

log = structlog.get_logger()

_NS = 1_000_000_000
_OPERATIONS = {"tgi": ("text_completion", "huggingface.tgi"), "openai": ("chat", "openai")}


class Spans:
    """An observer that makes the spans of what is worth a trace: errors, deferred items, whatever is no plain request
    of a caller, the runs that an audit looks at again, and what was sampled. For the event loop only.

    `models` finds a declared model by its name. With `text`, the spans of inferences carry input and output.
    """

    def __init__(
        self, tracer: Tracer, ids: RecordIds, clock: Clock, models: Callable[[str], Model | None], *, text: bool
    ) -> None:
        self._tracer, self._ids, self._clock = tracer, ids, clock
        self._models, self._text = models, text

    def answered(self, task: LoadedTask, answer: Answer) -> None:
        """Make the spans of an answer, if its trace is kept."""
        inference = answer.inference
        asked = inference.invocation
        sampled = asked.origin is not None and asked.origin.sampled
        wanted = inference.decision.status != "accepted" or asked.kind != "invoke" or inference.sample is not None
        if answer.replayed or not (sampled or wanted):
            return
        try:
            self._make(task, answer)
        except Exception:
            log.exception("spans_not_made")

    def refused(self, task: LoadedTask, invocation: Invocation, error: BaseException) -> None:
        """One span that says why. What was refused for lack of room or quota is kept only where it was sampled."""
        code, status = (error.code, error.status) if isinstance(error, GatewayError) else ("internal", 500)
        broken = status >= 500 and not isinstance(error, Overloaded)
        if not (broken or (invocation.origin is not None and invocation.origin.sampled)):
            return
        end_ns = time.time_ns()
        start_ns = self._began_ns(invocation, end_ns)
        said = {**_of_invocation(invocation), "error.type": code}
        span = self._root(task, invocation, start_ns, said)
        if broken:
            span.set_status(Status(StatusCode.ERROR, code))
        span.end(end_ns)

    def _make(self, task: LoadedTask, answer: Answer) -> None:
        inference = answer.inference
        end_ns = time.time_ns()
        said = {**_of_invocation(inference.invocation), **_of_decision(inference), **self._texts(inference)}
        root = self._root(task, inference.invocation, self._began_ns(inference.invocation, end_ns), said)
        under = set_span_in_context(root)
        past_ns = end_ns - round(self._clock.monotonic_s() * _NS)
        for attempt in inference.attempts:
            self._attempt(task, attempt, under)
        for number, lap in enumerate(answer.laps, 1):
            if lap.name == "cascade":
                continue  # The attempts show it.
            said = {"taskgate.cache": inference.cache} if number == 1 else {}
            start = past_ns + round(lap.start_s * _NS)
            span = self._start(span_id(inference.id) ^ number, lap.name, under, start, said)
            span.end(past_ns + round(lap.end_s * _NS))
        if inference.decision.status == "failed":
            root.set_status(Status(StatusCode.ERROR, inference.decision.reason))
        root.end(end_ns)

    def _root(self, task: LoadedTask, asked: Invocation, start_ns: int, said: Mapping[str, Any]) -> Span:
        self._ids.trace_id = int(asked.trace_id or trace_of(asked.id), 16)
        above = Context()
        if asked.origin is not None and asked.origin.parent_span and asked.trace_id:
            parent = span_context(asked.trace_id, int(asked.origin.parent_span, 16), sampled=True, remote=True)
            above = set_span_in_context(NonRecordingSpan(parent), above)
        kind = SpanKind.SERVER if asked.kind == "invoke" else SpanKind.INTERNAL
        return self._start(span_id(asked.id), f"inference {task.name}", above, start_ns, said, kind, _looked_at(asked))

    def _attempt(self, task: LoadedTask, attempt: Attempt, under: Context) -> None:
        start_ns = _ns(attempt.started_at)
        said = _of_attempt(attempt)
        name, kind = f"attempt {attempt.stage}", SpanKind.INTERNAL
        if (declared := self._model_of(task, attempt)) is not None:
            operation, provider = _OPERATIONS[declared.kind]
            name, kind = f"{operation} {declared.model_id}", SpanKind.CLIENT
            said |= {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": provider,
                "gen_ai.request.model": declared.model_id,
                "gen_ai.usage.input_tokens": attempt.usage.input_tokens,
                "gen_ai.usage.output_tokens": attempt.usage.output_tokens,
                "taskgate.cost_nano": attempt.usage.cost_nano,
            }
        span = self._start(span_id(attempt.id), name, under, start_ns, said, kind)
        for resent, call in enumerate(attempt.calls):
            self._call(call, resent, set_span_in_context(span))
        if attempt.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, attempt.reason))
        span.end(start_ns + _of_ms(attempt.duration_ms))

    def _call(self, call: ModelCall, resent: int, under: Context) -> None:
        asked_ns = _ns(call.started_at)
        sent_ns = asked_ns + _of_ms(call.waited_ms)
        self._start(span_id(call.id) ^ 1, "reserve", under, asked_ns, {}).end(sent_ns)
        if not call.duration_ms:
            return  # The intent could not be written: nothing was sent.
        at = urlsplit(call.replica)
        said = {
            "http.request.method": "POST",
            "server.address": at.hostname,
            "server.port": at.port,
            "http.response.status_code": call.http_status,
            "http.request.resend_count": resent or None,
            "taskgate.call_outcome": call.outcome,
            "taskgate.settled": call.settled,
            "gen_ai.usage.input_tokens": call.usage.input_tokens,
            "gen_ai.usage.output_tokens": call.usage.output_tokens,
            "error.type": None if call.outcome == "ok" else call.outcome,
        }
        span = self._start(span_id(call.id), f"call {at.hostname}", under, sent_ns, said, SpanKind.CLIENT)
        if call.outcome != "ok":
            span.set_status(Status(StatusCode.ERROR, call.outcome))
        span.end(sent_ns + _of_ms(call.duration_ms))

    def _start(
        self,
        id: int,
        name: str,
        under: Context,
        start_ns: int,
        said: Mapping[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
    ) -> Span:
        self._ids.span_id = id
        known = {key: value for key, value in said.items() if value is not None}
        return self._tracer.start_span(name, under, kind, known, links, start_ns)

    def _model_of(self, task: LoadedTask, attempt: Attempt) -> Model | None:
        stage = next((step.stage for step in task.steps if step.stage.name == attempt.stage), None)
        return self._models(stage.model) if isinstance(stage, ChainStage) else None

    def _began_ns(self, asked: Invocation, now_ns: int) -> int:
        if asked.origin is None:
            return _ns(asked.received_at)
        return now_ns - round((self._clock.monotonic_s() - asked.origin.began_s) * _NS)

    def _texts(self, inference: Inference) -> dict[str, Any]:
        if not self._text:
            return {}
        output = msgspec.json.encode(inference.decision.output).decode()
        return {"taskgate.input": inference.invocation.canonical.decode(), "taskgate.output": output}


def _of_invocation(asked: Invocation) -> dict[str, Any]:
    return {
        "taskgate.task": asked.task,
        "taskgate.run_id": asked.id,
        "taskgate.fingerprint": asked.fingerprint,
        "taskgate.kind": asked.kind,
        "taskgate.parent_run_id": asked.parent_id,
        "taskgate.caller_team": asked.caller.team,
        "taskgate.request_id": asked.origin.request_id if asked.origin is not None else None,
    }


def _of_decision(inference: Inference) -> dict[str, Any]:
    decision = inference.decision
    return {
        "taskgate.status": decision.status,
        "taskgate.action": decision.action,
        "taskgate.stage": decision.stage,
        "taskgate.reason": decision.reason,
        "taskgate.cache": inference.cache,
        "taskgate.cost_nano": inference.usage.cost_nano,
        "taskgate.review_id": inference.review_id,
        "error.type": decision.reason if decision.status == "failed" else None,
    }


def _of_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "taskgate.stage": attempt.stage,
        "taskgate.stage_kind": attempt.kind,
        "taskgate.outcome": attempt.outcome,
        "taskgate.label": attempt.label,
        "taskgate.score": attempt.score,
        "taskgate.label_mass": attempt.label_mass,
        "taskgate.reason": attempt.reason,
        "taskgate.matched": attempt.matched or None,
        "error.type": attempt.reason if attempt.outcome == "failed" else None,
    }


def _looked_at(asked: Invocation) -> Sequence[Link]:
    """The run that this one looks at again, if it does."""
    if asked.parent_id is None or asked.parent_trace_id is None:
        return ()
    return (Link(span_context(asked.parent_trace_id, span_id(asked.parent_id), sampled=True, remote=True)),)


def _ns(at: datetime) -> int:
    return round(at.timestamp() * _NS)


def _of_ms(milliseconds: float) -> int:
    return round(milliseconds * 1_000_000)
