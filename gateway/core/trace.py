"""Where an invocation stands in a trace, and what names it in log lines.

A span's id is the end of the id of what it shows: from a row of the ledger one finds the span, and back. Spans are made
when an inference is over; only a call to a model server needs its span while it runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from gateway.core.inference import Invocation

CURRENT: ContextVar[Invocation] = ContextVar("CURRENT")
"""The invocation that is being answered: log lines take their ids from it."""


def trace_of(id: str) -> str:
    """The trace of what no request asked for: its own, under the id of what it shows."""
    return id.replace("-", "")


def span_id(id: str) -> int:
    """The id of the span that shows what the UUID `id` names."""
    return int(id.replace("-", "")[-16:], 16)


def span_context(trace_id: str, span_id: int, *, sampled: bool, remote: bool = False) -> SpanContext:
    """A place in a trace, in OpenTelemetry's terms."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return SpanContext(int(trace_id, 16), span_id, is_remote=remote, trace_flags=flags)


@contextmanager
def calling(invocation: Invocation, call_id: str) -> Iterator[None]:
    """Within the block, the current span is that of the model call: what goes out on the wire names it as parent.

    What no request asked for has no origin, and its trace is always kept.
    """
    if invocation.trace_id is None:
        yield
        return
    sampled = invocation.origin is None or invocation.origin.sampled
    place = span_context(invocation.trace_id, span_id(call_id), sampled=sampled)
    token = context.attach(set_span_in_context(NonRecordingSpan(place)))
    try:
        yield
    finally:
        context.detach(token)


def ids() -> dict[str, str]:
    """What names the invocation that is being answered, for log lines; empty outside of one."""
    asked = CURRENT.get(None)
    if asked is None:
        return {}
    named = {"run_id": asked.id, "trace_id": asked.trace_id}
    if asked.origin is not None:
        named["request_id"] = asked.origin.request_id
    return {name: value for name, value in named.items() if value is not None}
