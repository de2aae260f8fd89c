"""A task's examples, run through its own cascade: does the deployed model still answer as it must?"""

import asyncio
from collections.abc import Sequence
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.core import cascade
from gateway.core.cache import canonical_json
from gateway.core.clock import Clock
from gateway.core.inference import Caller, Decision, Intent, Invocation
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Meter, Settlement
from gateway.core.quotas import Charge
from gateway.core.task import Example

_AT_ONCE = 8
PLATFORM = Caller("platform", "terminal", frozenset())


class ExamplesRun(Struct, frozen=True):
    """How many examples got the answer that they want; `wrong` names the line of each that did not, and why."""

    right: int
    wrong: tuple[str, ...]
    floor: float | None

    @property
    def total(self) -> int:
        return self.right + len(self.wrong)

    @property
    def good(self) -> bool:
        """Whether the share of right ones reaches the floor of the task's [gate]; without one, all must be right."""
        return self.right >= self.total * (1.0 if self.floor is None else self.floor)


class _NobodyPays:
    """Reservations and intents of a check at a terminal: outside of traffic, so neither budget nor ledger."""

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        """Nothing is taken."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Nothing was taken."""

    async def intend(self, intent: Intent) -> None:
        """Nothing is written."""


async def run_examples(task: LoadedTask, clock: Clock) -> ExamplesRun:
    """Run every example, a few at a time. The model calls are real, and are not billed."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def got(position: int) -> str | None:
        async with free:
            example = task.examples[position]
            outcome = await cascade.run(task.declared, task.steps, example.input, _meter(task, position, clock), clock)
        wrong = missed(example, outcome.decision)
        return None if wrong is None else f"line {position + 1}: {wrong}"

    wrong = [said for said in await asyncio.gather(*map(got, range(len(task.examples)))) if said is not None]
    floor = task.declared.gate.accuracy if task.declared.gate is not None else None
    return ExamplesRun(len(task.examples) - len(wrong), tuple(wrong), floor)


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


def _meter(task: LoadedTask, position: int, clock: Clock) -> Meter:
    given = task.examples[position].input
    invocation = Invocation(
        id=clock.new_id(),
        task=task.name,
        fingerprint=task.fingerprint,
        caller=PLATFORM,
        owner_team=task.declared.owner,
        payer_team=PLATFORM.team,
        input=given,
        canonical=canonical_json(given),
        received_at=clock.now(),
        kind="canary",
    )
    nobody = _NobodyPays()
    return Meter(invocation, (), nobody, nobody, clock, ZoneInfo("UTC"))
