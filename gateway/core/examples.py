"""A task's examples, run through its own cascade: does the deployed model still answer as it must?"""

import asyncio
from collections.abc import Sequence
from typing import Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.core import cascade
from gateway.core.cache import canonical_json
from gateway.core.clock import Clock
from gateway.core.inference import NOTHING_USED, Caller, Decision, Inference, Intent, Invocation, Usage
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Intents, Meter, Settlement
from gateway.core.quotas import Charge
from gateway.core.task import Example

# So few that a model server on a laptop's CPU answers each before its stage's time is up.
_AT_ONCE = 2
PLATFORM = Caller("platform", "terminal", frozenset())


class Book(Intents, Protocol):
    """The ledger."""

    async def record(self, inference: Inference) -> None:
        """Raises Unavailable."""


class NoBook:
    """In the place of a ledger, at a terminal that knows of none."""

    async def intend(self, intent: Intent) -> None:
        """Nothing is written."""

    async def record(self, inference: Inference) -> None:
        """Nothing is written."""


class ExamplesRun(Struct, frozen=True):
    """How many examples got the answer that they want; `wrong` names the line of each that did not, and why."""

    right: int
    wrong: tuple[str, ...]
    floor: float | None
    calls: int = 0
    usage: Usage = NOTHING_USED

    @property
    def total(self) -> int:
        return self.right + len(self.wrong)

    @property
    def good(self) -> bool:
        """Whether the share of right ones reaches the floor of the task's [gate]; without one, all must be right."""
        return self.right >= self.total * (1.0 if self.floor is None else self.floor)


class _NoBudget:
    """The platform has no limits, so nothing is ever reserved for it."""

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        """Nothing is taken."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Nothing was taken."""


async def run_examples(task: LoadedTask, clock: Clock, book: Book) -> ExamplesRun:
    """Run every example, a few at a time. Each is a canary in the book, which the platform pays. Raises Unavailable."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def run(example: Example) -> Inference:
        async with free:
            return await _run(task, example, clock, book)

    runs = await asyncio.gather(*map(run, task.examples))
    got = [missed(example, each.decision) for example, each in zip(task.examples, runs, strict=True)]
    wrong = [f"line {number}: {said}" for number, said in enumerate(got, 1) if said is not None]
    calls = [call for each in runs for attempt in each.attempts for call in attempt.calls]
    floor = task.declared.gate.accuracy if task.declared.gate is not None else None
    usage = sum((call.usage for call in calls), NOTHING_USED)
    return ExamplesRun(len(runs) - len(wrong), tuple(wrong), floor, len(calls), usage)


def canary(task: LoadedTask, example: Example, caller: Caller, clock: Clock) -> Invocation:
    """The question that an example asks. The caller's team, the platform, pays."""
    return Invocation(
        id=clock.new_id(),
        task=task.name,
        fingerprint=task.fingerprint,
        caller=caller,
        owner_team=task.declared.owner,
        payer_team=caller.team,
        input=example.input,
        canonical=canonical_json(example.input),
        received_at=clock.now(),
        kind="canary",
    )


async def _run(task: LoadedTask, example: Example, clock: Clock, book: Book) -> Inference:
    asked = canary(task, example, PLATFORM, clock)
    meter = Meter(asked, (), _NoBudget(), book, clock, ZoneInfo("UTC"))
    done = await cascade.run_unasked(task.declared, task.steps, asked, meter, clock)
    await book.record(done)
    return done


def missed(example: Example, decision: Decision) -> str | None:
    """What is wrong with the answer that an example got; None where nothing is."""
    if example.label is not None:
        said = decision.label or decision.reason
        return None if decision.label == example.label else f"{said}, not {example.label}"
    if decision.status != "accepted" or decision.output is None:
        return decision.reason or decision.status
    text = "\n".join(str(value) for value in decision.output.values()).casefold()
    got = {name: decision.output.get(name, "missing") for name in example.output}
    reasons = (
        *(
            f"`{name}` is {got[name]!r}, not {wanted!r}"
            for name, wanted in example.output.items()
            if got[name] != wanted
        ),
        *(f"lacks {fragment!r}" for fragment in example.holds if fragment.casefold() not in text),
        *(f"holds {fragment!r}" for fragment in example.lacks if fragment.casefold() in text),
    )
    return ", ".join(reasons) or None
