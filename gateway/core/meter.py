"""The meter: every request to a model server passes through here, or is not made.

Reserve the estimate, write the intent, let the call happen, keep the truth for settlement. A call ends in exactly one
of three ways: the server counted it (settled), the server refused it (nothing counted), or nobody knows (unsettled,
at the estimate, which is a bound).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.core.clock import Clock
from gateway.core.errors import Unavailable
from gateway.core.inference import NOTHING_USED, Intent, Invocation, ModelCall, Usage
from gateway.core.prices import Tariff
from gateway.core.quotas import Charge, Limit, for_model_call
from gateway.core.trace import calling

# Above what any model reads, and far below what a ledger's column holds once it is priced.
_MOST_TOKENS = 2**31


class Settlement(Struct, frozen=True):
    """A reservation and what became of it. Settling twice is the same as settling once."""

    reservation_id: str
    charges: tuple[Charge, ...]
    usage: Usage


class Reservations(Protocol):
    """The fast counters, shared by all replicas."""

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        """Take all charges or none; again under the same id takes nothing more. Raises BudgetExceeded, Unavailable."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Replace estimates by the truth, each exactly once. Raises Unavailable."""


class Intents(Protocol):
    """The durable record of what is about to be spent."""

    async def intend(self, intent: Intent) -> None:
        """Returns when the intent is durable. Raises Unavailable."""


class MeteredModel(Struct, frozen=True):
    """What the meter needs to know of a model."""

    name: str
    tariff: Tariff


class WireCall:
    """One request on the wire. The model's door calls one of `settle`, `refuse` and `lose` before it leaves the block;
    leaving without a word counts as lost, for nobody knows what the server has counted.
    """

    def __init__(self, intent: Intent, tariff: Tariff) -> None:
        self.intent = intent
        self._tariff = tariff
        self.outcome: Literal["ok", "refused", "timeout", "error", "cancelled", "lost"] = "lost"
        self.settled = False
        self.usage = intent.estimate
        self.http_status: int | None = None

    def settle(self, input_tokens: int, output_tokens: int, http_status: int = 200) -> None:
        """The server answered and said what it counted. What cannot be a count leaves the call at its estimate."""
        self.outcome, self.http_status = "ok", http_status
        if min(input_tokens, output_tokens) >= 0 and max(input_tokens, output_tokens) < _MOST_TOKENS:
            self.settled = True
            self.usage = self._tariff.usage(input_tokens, output_tokens, self.intent.created_at)

    def refuse(self, http_status: int | None = None) -> None:
        """The server surely counted nothing: no connection, or it turned the request away before running it."""
        self.outcome, self.settled, self.http_status = "refused", True, http_status
        self.usage = NOTHING_USED

    def lose(self, outcome: Literal["timeout", "error", "cancelled"], http_status: int | None = None) -> None:
        """The answer never came whole; the server may have counted up to the estimate."""
        self.outcome, self.http_status = outcome, http_status


class Meter:
    """The model calls of one inference."""

    def __init__(
        self,
        invocation: Invocation,
        limits: Sequence[Limit],
        reservations: Reservations,
        intents: Intents,
        clock: Clock,
        zone: ZoneInfo,
    ) -> None:
        self.invocation = invocation
        self.settlements: list[Settlement] = []
        self._limits = limits
        self._reservations = reservations
        self._intents = intents
        self._clock = clock
        self._zone = zone
        self._attempt_id = ""
        self._calls: list[ModelCall] = []

    def begin(self, attempt_id: str) -> None:
        """Calls from here on belong to this attempt."""
        self._attempt_id, self._calls = attempt_id, []

    def end(self) -> tuple[ModelCall, ...]:
        """The calls of the attempt that `begin` named."""
        return tuple(self._calls)

    @property
    def upstream_ms(self) -> float:
        """Time spent waiting for model servers in the current attempt."""
        return sum(call.duration_ms for call in self._calls)

    @asynccontextmanager
    async def call(
        self, model: MeteredModel, replica: str, input_tokens: int, output_tokens: int
    ) -> AsyncIterator[WireCall]:
        """Reserve and record a call of at most these tokens, then run the block, which makes the request.

        Raises BudgetExceeded when a budget does not cover the estimate, Unavailable when a store is unreachable; in
        both cases the block does not run.
        """
        asked_s = self._clock.monotonic_s()
        intent = self._intent(model, replica, input_tokens, output_tokens)
        charges = tuple(for_model_call(self._limits, intent, self._zone))
        if charges:
            try:
                await self._reservations.reserve(intent.id, charges)
            except (Unavailable, asyncio.CancelledError):
                # The store may have taken it, and only its answer was lost, or came too late.
                self.settlements.append(Settlement(intent.id, charges, NOTHING_USED))
                raise
        wire = WireCall(intent, model.tariff)
        try:
            await self._intents.intend(intent)
            if charges:
                # A store that lost the reservation was rebuilt without this intent, perhaps: then it is taken again.
                await self._reservations.reserve(intent.id, charges)
        except BaseException:
            wire.refuse()
            self._close(wire, charges, self._clock.since_ms(asked_s), 0.0)
            raise
        waited_ms, start_s = self._clock.since_ms(asked_s), self._clock.monotonic_s()
        try:
            with calling(self.invocation, intent.id):
                yield wire
        finally:
            self._close(wire, charges, waited_ms, self._clock.since_ms(start_s))

    def _intent(self, model: MeteredModel, replica: str, input_tokens: int, output_tokens: int) -> Intent:
        now, asked = self._clock.now(), self.invocation
        hour = model.tariff.gpu_hour(now)
        return Intent(
            id=self._clock.new_id(),
            inference_id=asked.id,
            attempt_id=self._attempt_id,
            task=asked.task,
            caller_team=asked.caller.team,
            owner_team=asked.owner_team,
            payer_team=asked.payer_team,
            key_id=asked.caller.key_id,
            kind=asked.kind,
            model=model.name,
            replica=replica,
            estimate=model.tariff.usage(input_tokens, output_tokens, now),
            created_at=now,
            gpu_hour_nano=hour.bill_nano if hour is not None else None,
        )

    def _close(self, wire: WireCall, charges: tuple[Charge, ...], waited_ms: float, duration_ms: float) -> None:
        if charges:
            self.settlements.append(Settlement(wire.intent.id, charges, wire.usage))
        self._calls.append(
            ModelCall(
                id=wire.intent.id,
                attempt_id=wire.intent.attempt_id,
                model=wire.intent.model,
                replica=wire.intent.replica,
                outcome=wire.outcome,
                settled=wire.settled,
                usage=wire.usage,
                started_at=wire.intent.created_at,
                duration_ms=duration_ms,
                http_status=wire.http_status,
                waited_ms=waited_ms,
                gpu_hour_nano=wire.intent.gpu_hour_nano,
            )
        )
