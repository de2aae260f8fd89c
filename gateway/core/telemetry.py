"""How an inference is seen from outside: metrics and spans are made from the record of it, when it is over.

So ledger, metrics and traces cannot tell different stories, a trace that nobody keeps costs next to nothing, and
whether it is kept is decided when its outcome is known. A span's id is the end of the id of what it shows: from a row
of the ledger one finds the span, and back. Only a call to a model server needs its span while it runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from opentelemetry import context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from gateway.core.clock import Clock
from gateway.core.inference import Answer, Invocation, Lap

if TYPE_CHECKING:
    from gateway.core.loaded import LoadedTask

CURRENT: ContextVar[Invocation] = ContextVar("CURRENT")
"""The invocation that is being answered: log lines take their ids from it."""


Sampler = Callable[[str, bool | None], bool]
"""(trace id, whether the caller's side keeps the trace; None where it says nothing) → whether it is kept here."""


class Observer(Protocol):
    """Told of every invocation when it is over. Must neither block nor raise."""

    def answered(self, task: "LoadedTask", answer: Answer) -> None:
        """It was answered, and is in the ledger."""

    def refused(self, task: "LoadedTask", invocation: Invocation, error: BaseException) -> None:
        """It ended without an answer."""


class Observers:
    """Tells several."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def answered(self, task: "LoadedTask", answer: Answer) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.answered(task, answer)

    def refused(self, task: "LoadedTask", invocation: Invocation, error: BaseException) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.refused(task, invocation, error)


class Stopwatch:
    """The steps of one inference that follow on each other, in readings of the clock's `monotonic_s`."""

    __slots__ = ("_clock", "_last_s", "laps")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_s = clock.monotonic_s()
        self.laps: list[Lap] = []

    def lap(self, name: str) -> None:
        """The step of that name ends, and the next begins."""
        now_s = self._clock.monotonic_s()
        self.laps.append(Lap(name, self._last_s, now_s))
        self._last_s = now_s


class Reading(NamedTuple):
    """A value that is looked up when somebody asks: one per combination of labels."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: Sequence[tuple[tuple[str, ...], float]]


class ReplicaState(NamedTuple):
    """A replica of a model as one process sees it: how many requests it is at, and whether it is taken out."""

    model: str
    url: str
    breaker: Literal["closed", "half_open", "open"]
    outstanding: int
    barred: bool


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
