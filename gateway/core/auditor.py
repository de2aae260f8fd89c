"""The auditor: asks the LLM, off the response path, about sampled runs that a cheap stage cleared; and then people.

Its model calls take nothing from the quotas of traffic. Their bound is the task's `[audit] per_day`, a counter of its
own that all replicas share; what finds it used up is dropped, and counted.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

import structlog
from msgspec import Struct

from gateway.core import cascade
from gateway.core.cache import canonical_json
from gateway.core.clock import Clock
from gateway.core.errors import QuotaExceeded, Unavailable
from gateway.core.holds import policies_of
from gateway.core.inference import Answer, Attribution, Caller, Inference, Invocation
from gateway.core.loaded import LoadedTask
from gateway.core.meter import Intents, Meter, Reservations
from gateway.core.quotas import Charge, Limit, at_the_door
from gateway.core.registry import Registry
from gateway.core.reviews import Item, rank_of, risk_of
from gateway.core.samples import Drawn, Judged, Samples, Verdict, asks_people, audits
from gateway.core.task import ChainStage, Review
from gateway.core.telemetry import Observer, Observers
from gateway.core.trace import trace_of

log = structlog.get_logger()

AT_ONCE = 4
"""Audits of a process under way at once: traffic has the rest of a model's permits."""
TRIES = 3
AGE = timedelta(days=2)
"""What has waited longer is dropped: texts are not kept for a model that does not come back."""
CLAIM, PAUSE = timedelta(minutes=5), timedelta(minutes=5)
_IDLE_S = 2.0
_UNDECLARED = Review()


class Budget(Reservations, Protocol):
    """The counters, as far as the auditor takes from them."""

    async def admit(
        self, invocation_id: str, charges: Sequence[Charge], cache_key: str | None, *, claims: bool = True
    ) -> object:
        """Take all charges or none. Raises QuotaExceeded, Unavailable."""


class Record(Intents, Protocol):
    """The ledger."""

    async def record(self, inference: Inference) -> None:
        """One inference, one transaction. Raises Unavailable."""


class Done(Struct, frozen=True):
    """An audit that was made: the inference, and what it says."""

    inference: Inference
    verdict: Verdict


def _uncounted(task: str, outcome: str) -> None:
    """Where nobody counts."""


class Auditor:
    """One per process; any number may run, a sample is one's at a time. `count` hears of each sample's task, and what
    came of it.
    """

    def __init__(
        self,
        samples: Samples,
        registry: Callable[[], Registry],
        budget: Budget,
        ledger: Record,
        clock: Clock,
        zone: ZoneInfo,
        observer: Observer | None = None,
        count: Callable[[str, str], None] = _uncounted,
    ) -> None:
        self._observer, self._count = observer or Observers(()), count
        self._samples, self._registry, self._budget, self._ledger = samples, registry, budget, ledger
        self._clock, self._zone = clock, zone
        self._closing = asyncio.Event()

    async def turn(self) -> int:
        """Look at what waits: how many. Raises Unavailable."""
        now = self._clock.now()
        drawn = await self._samples.claim(now, now + CLAIM, AT_ONCE)
        await asyncio.gather(*(self._look(each) for each in drawn))
        return len(drawn)

    async def follow(self) -> None:
        """Take turns until closed; a store that is away is tried again. A turn that has begun is finished."""
        while not self._closing.is_set():
            done = 0
            try:
                done = await self.turn()
            except Unavailable:
                log.warning("audits_postponed")
            if not done:
                await _first(self._closing, _IDLE_S)

    def close(self) -> None:
        """Begin no more turns; `follow` returns after the one under way. What waits is another process's, or later."""
        self._closing.set()

    async def _look(self, drawn: Drawn) -> None:
        try:
            await self._judge(drawn)
        except Unavailable:
            with suppress(Unavailable):
                await self._samples.postpone(drawn.id, self._clock.now() + PAUSE)

    async def _judge(self, drawn: Drawn) -> None:
        task = self._registry().tasks.get(drawn.task)
        if (reason := self._hopeless(drawn, task)) is not None or task is None:
            await self._drop(drawn, reason or "unknown_task")
            return
        if drawn.asks == "people":
            await self._settle(drawn, Judged(people_probability=1.0, question=self._question(drawn, task, None)))
            return
        try:
            await self._budget.admit(drawn.id, self._charges(drawn, task), None, claims=False)
            await self._audit(drawn, task)
        except QuotaExceeded:
            await self._drop(drawn, "per_day")

    def _hopeless(self, drawn: Drawn, task: LoadedTask | None) -> str | None:
        """Why nobody will ever look at it."""
        if task is None:
            return "unknown_task"
        if drawn.input is None:
            return "erased"
        if self._clock.now() - drawn.created_at > AGE:
            return "too_old"
        if drawn.asks == "llm" and not audits(task.declared):
            return "not_audited"
        # A sample on which processes die is not tried for ever.
        return "tries" if drawn.tries > TRIES else None

    async def _audit(self, drawn: Drawn, task: LoadedTask) -> None:
        done = await self._ask(drawn, task)
        await self._ledger.record(done.inference)
        self._observer.answered(task, Answer(done.inference))
        if done.verdict == "none" and drawn.tries < TRIES:
            log.info("audit_failed", task=drawn.task, reason=done.inference.decision.reason, tries=drawn.tries)
            return
        declared = task.declared.audit
        assert declared is not None, "`audits` has checked it"
        probability = asks_people(drawn.id, done.verdict, declared.review)
        question = self._question(drawn, task, done.inference) if probability is not None else None
        await self._settle(
            drawn,
            Judged(verdict=done.verdict, audit_id=done.inference.id, people_probability=probability, question=question),
        )

    async def _ask(self, drawn: Drawn, task: LoadedTask) -> Done:
        """The task's LLM stages alone, as an inference of its own that the owner pays."""
        asked = self._invocation(drawn, task)
        meter = Meter(asked, (), self._budget, self._ledger, self._clock, self._zone)
        steps = [step for step in task.steps if isinstance(step.stage, ChainStage)]
        inference = await cascade.run_unasked(task.declared, steps, asked, meter, self._clock)
        return Done(inference, _verdict(inference, task.declared.positive))

    def _invocation(self, drawn: Drawn, task: LoadedTask) -> Invocation:
        owner, item, id_ = task.declared.owner, drawn.input or {}, self._clock.new_id()
        return Invocation(
            id=id_,
            task=drawn.task,
            fingerprint=task.fingerprint,
            caller=Caller(owner, "audit", frozenset()),
            owner_team=owner,
            payer_team=owner,
            input=item,
            canonical=canonical_json(item),
            received_at=self._clock.now(),
            kind="audit",
            parent_id=drawn.id,
            trace_id=trace_of(id_),
            parent_trace_id=drawn.trace_id,
            attribution=Attribution(subject_id=drawn.subject_id),
        )

    def _question(self, drawn: Drawn, task: LoadedTask, audit: Inference | None) -> Item:
        """What people are asked. The machine delivered it, or blocked it at once: no clock and no webhook follows."""
        decision = audit.decision if audit is not None else None
        policies, severity = policies_of(decision) if decision is not None else ((), None)
        score = decision.score if decision is not None else drawn.score
        now, id_ = self._clock.now(), self._clock.new_id()
        due_at = now + timedelta(minutes=(task.declared.review or _UNDECLARED).sla_minutes)
        return Item(
            id=id_,
            kind="audit",
            root_id=id_,
            task=drawn.task,
            caller_team=drawn.caller_team,
            owner_team=task.declared.owner,
            fingerprint=drawn.fingerprint,
            severity=severity,
            score=score,
            policies=policies,
            stage=drawn.stage,
            created_at=now,
            due_at=due_at,
            rank_at=rank_of(now, due_at, risk_of(severity or 1, score)),
        )

    def _charges(self, drawn: Drawn, task: LoadedTask) -> list[Charge]:
        per_day = task.declared.audit.per_day if task.declared.audit is not None else 0
        limit = Limit("requests", per_day, "day", ("task",))
        caller = Caller(task.declared.owner, "audit", frozenset())
        return at_the_door((limit,), f"audit:{drawn.task}", caller, self._clock.now(), self._zone)

    async def _settle(self, drawn: Drawn, judged: Judged) -> None:
        await self._samples.settle(drawn, judged)
        self._count(drawn.task, judged.verdict or "people")

    async def _drop(self, drawn: Drawn, reason: str) -> None:
        await self._samples.drop(drawn.id, reason)
        log.warning("audit_dropped", task=drawn.task, run_id=drawn.id, reason=reason)
        self._count(drawn.task, f"dropped_{reason}")


def _verdict(judged: Inference, positive: str | None) -> Verdict:
    last = judged.attempts[-1]
    if last.outcome == "decided":
        return "flagged" if last.label == positive else "cleared"
    # Between the thresholds it did look, and did not clear.
    return "flagged" if last.score is not None else "none"


async def _first(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
