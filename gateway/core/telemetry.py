"""How an inference is seen from outside: metrics and spans are made from the record of it, when it is over.

So ledger, metrics and traces cannot tell different stories, a trace that nobody keeps costs next to nothing, and
whether it is kept is decided when its outcome is known.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from gateway.core.clock import Clock
from gateway.core.inference import Answer, Invocation, Lap

if TYPE_CHECKING:
    from gateway.core.loaded import LoadedTask

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
