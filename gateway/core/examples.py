"""A task's examples, run through its own cascade: does the deployed model still give the labels that it must?"""

import asyncio
from collections.abc import Sequence
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.core import cascade
from gateway.core.cache import canonical_json
from gateway.core.clock import Clock
from gateway.core.inference import Caller, Intent, Invocation
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Meter, Settlement
from gateway.core.quotas import Charge

_AT_ONCE = 8
PLATFORM = Caller("platform", "terminal", frozenset())


class ExamplesRun(Struct, frozen=True):
    """How many examples got their label; `wrong` names the line of each that did not, and what it got instead."""

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
        said = outcome.decision.label or outcome.decision.reason
        return None if outcome.decision.label == example.label else f"line {position + 1}: {said}, not {example.label}"

    wrong = [said for said in await asyncio.gather(*map(got, range(len(task.examples)))) if said is not None]
    floor = task.declared.gate.accuracy if task.declared.gate is not None else None
    return ExamplesRun(len(task.examples) - len(wrong), tuple(wrong), floor)


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
