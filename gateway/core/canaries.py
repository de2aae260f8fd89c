"""Canaries: items whose label is known, asked of every replica of a task's models, at the start and ever after.

A server that does not know an adapter serves the base model and says nothing; a merged model may be the wrong one. The
label tells. A replica that gets one wrong is taken out until it gets all of them right; one that is away is the
breaker's matter. Each canary is an inference of its own in the ledger, and the platform's to pay.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol
from zoneinfo import ZoneInfo

import structlog
from msgspec.structs import replace

from gateway.core import cascade
from gateway.core.cascade import Step
from gateway.core.clock import Clock
from gateway.core.errors import GatewayError
from gateway.core.examples import Book, canary
from gateway.core.inference import Answer, Caller
from gateway.core.loaded import LoadedModel, LoadedTask
from gateway.core.meter import Meter, Reservations
from gateway.core.registry import Registry
from gateway.core.task import ChainStage, Example
from gateway.core.telemetry import Observer
from gateway.core.trace import trace_of

log = structlog.get_logger()

PLATFORM = Caller("platform", "canary", frozenset())
# What a server says that answers, and answers wrong; every other failure says nothing of what it serves.
_WRONG = frozenset({"low_label_mass", "model_answer_invalid", "label_not_a_token", "unsure", "may_not_decide"})


class Servers(Protocol):
    """The replicas behind models."""

    def urls(self, model: LoadedModel) -> Sequence[str]:
        """Where the replicas of a model are."""

    def only(self, model: LoadedModel, url: str) -> AbstractContextManager[None]:
        """Within the block, this replica is asked and no other."""

    def bar(self, model: LoadedModel, url: str, why: str, said_by: str) -> None:
        """Take a replica out; with an empty `why` there is nothing against it any more."""


class Canaries:
    """Asks in turns, every `every_s`. `wrong` names what was found at the last turn: model → tasks."""

    def __init__(
        self,
        registry: Callable[[], Registry],
        servers: Servers,
        reservations: Reservations,
        ledger: Book,
        clock: Clock,
        zone: ZoneInfo,
        every_s: float,
        observer: Observer,
    ) -> None:
        self._registry, self._servers = registry, servers
        self._reservations, self._ledger, self._clock, self._zone = reservations, ledger, clock, zone
        self._every_s, self._observer = every_s, observer
        self.wrong: Mapping[str, Sequence[str]] = {}

    async def follow(self) -> None:
        """Take turns until cancelled."""
        while True:
            try:
                await self.turn()
            except GatewayError:
                log.warning("canaries_postponed", reason="a store is away")
            await asyncio.sleep(self._every_s)

    async def turn(self) -> None:
        """Ask every replica all canaries of every task. Raises Unavailable."""
        registry, wrong = self._registry(), dict[str, list[str]]()
        for task in registry.tasks.values():
            marked = [example for example in task.examples if example.canary]
            for step in task.steps if marked else ():
                for name in step.stage.models if isinstance(step.stage, ChainStage) else ():
                    if await self._judged(task, step, registry.models[name], marked):
                        wrong.setdefault(name, []).append(task.name)
        self.wrong = wrong

    async def _judged(self, task: LoadedTask, step: Step, model: LoadedModel, marked: Sequence[Example]) -> bool:
        """Whether any replica of the model is wrong."""
        found = False
        for url in self._servers.urls(model):
            said = [await self._asked(task, step, model, url, example) for example in marked]
            why = next((each for each in said if each), "")
            if why:
                log.error("canary_wrong", task=task.name, model=model.name, replica=url, said=why)
            if why or None not in said:
                self._servers.bar(model, url, why, f"canaries of {task.name}")
            found = found or bool(why)
        return found

    async def _asked(self, task: LoadedTask, step: Step, model: LoadedModel, url: str, example: Example) -> str | None:
        """What is wrong with the answer; empty for a right one, None where there is none."""
        asked = canary(task, example, PLATFORM, self._clock)
        asked = replace(asked, trace_id=trace_of(asked.id))
        meter = Meter(asked, (), self._reservations, self._ledger, self._clock, self._zone)
        with self._servers.only(model, url):
            inference = await cascade.run_unasked(task.declared, (step,), asked, meter, self._clock)
        await self._ledger.record(inference)
        self._observer.answered(task, Answer(inference))
        (attempt,) = inference.attempts
        if attempt.outcome == "decided":
            return "" if attempt.label == example.label else f"{attempt.label}, not {example.label}"
        return f"{attempt.reason}, not {example.label}" if attempt.reason in _WRONG else None
