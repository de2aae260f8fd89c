"""THE REQUEST PATH: admit → cache → cascade → record → keep.

Read this first. What is asked comes in as an Invocation, already validated; what goes out is an Inference that is
already in the ledger. Errors raised here were raised before anything was started, and cost nobody anything.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Protocol
from zoneinfo import ZoneInfo

import structlog
from msgspec import Struct, structs

from gateway.core import cascade
from gateway.core.cache import Kept, cache_key, pack, unpack
from gateway.core.clock import Clock
from gateway.core.errors import BudgetExceeded, CascadeExhausted, GatewayError, Overloaded, Unavailable
from gateway.core.flights import Claim, Flown, Lookout, Renewal, answered_elsewhere, patience_s
from gateway.core.holds import hold_of
from gateway.core.idempotency import Claims, replay
from gateway.core.inference import Answer, Inference, Invocation, RateHeader
from gateway.core.meter import Intents, Meter, Reservations, Settlement
from gateway.core.quotas import Charge, Limit, at_the_door
from gateway.core.registry import LoadedTask
from gateway.core.samples import draw
from gateway.core.telemetry import Observer, Observers, Stopwatch
from gateway.core.trace import CURRENT

log = structlog.get_logger()


class Admission(Struct, frozen=True):
    """What the store says at the door: the answer it keeps, if any, and how far the quotas are used.

    `claim`: whose the run is that will give an answer that is not kept yet. `degraded`: the store is away, and the
    quotas were taken from this process's share.
    """

    kept: bytes | None = None
    rates: tuple[RateHeader, ...] = ()
    claim: Claim = "none"
    degraded: bool = False


class Store(Reservations, Lookout, Protocol):
    """Everything shared and short-lived."""

    async def admit(
        self, invocation_id: str, charges: Sequence[Charge], cache_key: str | None, *, claims: bool = True
    ) -> Admission:
        """Take all charges or none, and look the answer up, or claim its run: one round trip.

        Raises QuotaExceeded, Unavailable.
        """

    async def renew(self, invocation_id: str, cache_key: str) -> None:
        """The claim of a run lasts on. Raises Unavailable."""

    async def finish(
        self,
        invocation_id: str,
        held: Sequence[Charge],
        settlements: Sequence[Settlement],
        keep: tuple[str, bytes, int] | None,
        claimed: str | None = None,
    ) -> None:
        """Give back what is held, settle, keep (key, answer, ttl_s), and end the claim of the run `claimed`: one round
        trip. Raises Unavailable.
        """


class Ledger(Intents, Protocol):
    """The durable record."""

    async def record(self, inference: Inference) -> None:
        """One inference, one transaction; its intents go with it. Returns when durable. Raises Unavailable."""


class Engine:
    """Answers invocations. One per process; `permits` bounds what is under way at once.

    `team_limits` gives the limits of a caller team, which hold beside the task's own. Without `claims` an
    Idempotency-Key means nothing.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        clock: Clock,
        zone: ZoneInfo,
        permits: int,
        team_limits: Callable[[str], Sequence[Limit]] = lambda _: (),
        claims: Claims | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._store, self._ledger, self._clock, self._zone = store, ledger, clock, zone
        self._team_limits, self._claims = team_limits, claims
        self._observer = observer or Observers(())
        self._free = permits
        self._flights: dict[str, asyncio.Task[Flown]] = {}
        self._running: set[asyncio.Task[Answer]] = set()

    async def invoke(self, task: LoadedTask, invocation: Invocation) -> Answer:
        """Answer one invocation. Once started it settles and records, even if the caller goes away.

        Raises Overloaded, QuotaExceeded or Unavailable before anything ran; CascadeExhausted or BudgetExceeded where
        nobody could answer and the task has no action for that.
        """
        if self._free <= 0:
            overloaded = Overloaded("The gateway is at its limit of concurrent requests.", retry_after_s=1)
            self._observer.refused(task, invocation, overloaded)
            raise overloaded
        self._free -= 1
        running = asyncio.create_task(self._observed(task, invocation))
        self._running.add(running)
        running.add_done_callback(self._done)
        answer = await asyncio.shield(running)
        _raise_if_failed(answer.inference)
        return answer

    async def drain(self) -> None:
        """Wait for everything that is under way."""
        while self._running:
            await asyncio.wait(self._running)

    @property
    def in_flight(self) -> int:
        """Invocations that are being answered."""
        return len(self._running)

    async def _observed(self, task: LoadedTask, invocation: Invocation) -> Answer:
        """Answer, in a task of its own, and tell the observer how it went."""
        CURRENT.set(invocation)
        try:
            answer = await self._answer_once(task, invocation)
        except BaseException as error:
            self._observer.refused(task, invocation, error)
            raise
        self._observer.answered(task, answer)
        return answer

    async def _answer_once(self, task: LoadedTask, invocation: Invocation) -> Answer:
        """Answer, or repeat what was answered under the same Idempotency-Key. Raises Conflict too."""
        if self._claims is None or invocation.idempotency_key is None:
            return await self._answer(task, invocation)
        if (recorded := await replay(self._claims, invocation, self._clock, patience_s(task.declared))) is not None:
            return Answer(recorded, replayed=True)
        answer = None
        try:
            answer = await self._answer(task, invocation)
        finally:
            if answer is None or answer.inference.decision.status == "failed":
                with suppress(Unavailable):
                    await self._claims.release(invocation)
        return answer

    async def _answer(self, task: LoadedTask, invocation: Invocation) -> Answer:
        start_s, watch = self._clock.monotonic_s(), Stopwatch(self._clock)
        limits = self._limits(task, invocation)
        charges = at_the_door(limits, task.name, invocation.caller, invocation.received_at, self._zone)
        key = cache_key(invocation, task.declared.cache)
        reading = task.declared.cache is not None and not invocation.no_cache
        admission = await self._admit(invocation, charges, key if reading else None)
        watch.lap("admit and cache")
        # What the ledger has not recorded stays reserved: whoever sweeps it settles it at what the ledger says then.
        recorded: Sequence[Settlement] = ()
        settlements: Sequence[Settlement] = ()
        claim = admission.claim
        keep: tuple[str, bytes, int] | None = None
        try:
            if admission.kept is not None and (kept := unpack(admission.kept)) is not None:
                inference = Inference(invocation=invocation, decision=kept.decision, cache="hit")
            else:
                inference, settlements, claim = await self._run(task, invocation, key, claim)
            inference = self._completed(task, inference, start_s)
            watch.lap("cascade")
            await self._ledger.record(inference)
            recorded = settlements
            watch.lap("record")
            keep = self._keep(task, inference, key)
        finally:
            await self._finish(invocation, charges, recorded, keep, key if claim == "mine" else None)
        watch.lap("keep")
        return Answer(inference, admission.rates, degraded=admission.degraded, laps=tuple(watch.laps))

    def _limits(self, task: LoadedTask, invocation: Invocation) -> Sequence[Limit]:
        return (*task.limits, *self._team_limits(invocation.caller.team))

    async def _admit(self, invocation: Invocation, charges: Sequence[Charge], key: str | None) -> Admission:
        try:
            return await self._store.admit(invocation.id, charges, key, claims=not invocation.no_store)
        except Unavailable:
            # Cheap stages go on answering without the store; what needs money is refused where it is reserved.
            log.warning("store_unavailable", at="admit", task=invocation.task)
            return Admission(degraded=True)

    async def _run(
        self, task: LoadedTask, invocation: Invocation, key: str, claim: Claim
    ) -> tuple[Inference, Sequence[Settlement], Claim]:
        """Run the cascade, or wait for the run of an identical invocation that is already under way."""
        if (flight := self._flights.get(key)) is not None and not invocation.no_cache:
            shared = (await asyncio.shield(flight)).outcome
            return Inference(invocation=invocation, decision=shared.decision, cache="shared"), (), claim
        flight = asyncio.create_task(self._fly(task, invocation, key, claim))
        self._flights[key] = flight
        try:
            flown = await flight
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
        decision, attempts = flown.outcome.decision, flown.outcome.attempts
        inference = Inference(invocation=invocation, decision=decision, attempts=attempts, cache=flown.cache)
        return inference, flown.settlements, flown.claim

    async def _fly(self, task: LoadedTask, invocation: Invocation, key: str, claim: Claim) -> Flown:
        """The answer of the process that is at it, if one is and gives it in time; else that of a run here."""
        if claim == "other":
            looked = await answered_elsewhere(self._store, invocation.id, key, patience_s(task.declared))
            if looked.kept is not None and (kept := unpack(looked.kept)) is not None:
                return Flown(cascade.Outcome((), kept.decision), cache="shared")
            claim = looked.claim
        meter = Meter(invocation, self._limits(task, invocation), self._store, self._ledger, self._clock, self._zone)
        with Renewal(lambda: self._store.renew(invocation.id, key)) if claim == "mine" else nullcontext():
            outcome = await cascade.run(task.declared, task.steps, invocation.input, meter, self._clock)
        return Flown(outcome, meter.settlements, claim)

    def _completed(self, task: LoadedTask, inference: Inference, start_s: float) -> Inference:
        """With its duration, and with a review where the item is held: a hold that was kept holds this item too. What
        is not held may be drawn for the audit sample.
        """
        inference = structs.replace(inference, duration_ms=self._clock.since_ms(start_s))
        if inference.decision.action != "review" or inference.invocation.kind != "invoke":
            return structs.replace(inference, sample=draw(task.declared, inference))
        hold = hold_of(inference.decision, task.declared.review, inference.invocation.received_at)
        return structs.replace(inference, review_id=self._clock.new_id(), hold=hold)

    def _keep(self, task: LoadedTask, inference: Inference, key: str) -> tuple[str, bytes, int] | None:
        cache = task.declared.cache
        if cache is None or inference.cache != "miss" or inference.decision.status != "accepted":
            return None
        if inference.invocation.no_store:
            return None
        return key, pack(Kept(inference.id, inference.decision)), cache.ttl_s

    async def _finish(
        self,
        invocation: Invocation,
        charges: Sequence[Charge],
        settlements: Sequence[Settlement],
        keep: tuple[str, bytes, int] | None,
        claimed: str | None,
    ) -> None:
        held = [charge for charge in charges if charge.mode == "held"]
        if not (held or settlements or keep or claimed):
            return
        try:
            await self._store.finish(invocation.id, held, settlements, keep, claimed)
        except GatewayError:
            # The ledger has the truth; the sweeper settles what this could not.
            log.warning("store_unavailable", at="finish", task=invocation.task)

    def _done(self, running: asyncio.Task[Answer]) -> None:
        self._running.discard(running)
        self._free += 1
        if not running.cancelled():
            running.exception()  # a caller that went away leaves nobody to read it


def _raise_if_failed(inference: Inference) -> None:
    if inference.decision.status != "failed":
        return
    reason = inference.decision.reason
    if reason == "budget_exceeded":
        raise BudgetExceeded("A budget does not cover this request.", run_id=inference.id)
    raise CascadeExhausted(f"No stage of the task could answer ({reason}).", run_id=inference.id, reason=reason)
