"""The Store and Reservations ports over the Redis protocol.

Keys (behind the prefix `tg:`): `q:` counters, `r:` records of reservations, `open` reservations by time, `c:` kept
answers, `f:` claims of runs, `epoch`, `budgets`, `replicas`, `keys:version`. The counters are no truth: the ledger is,
and they can be rebuilt from it.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec
import structlog
from msgspec import Struct

from gateway.adapters.redis.alone import OwnMemory
from gateway.adapters.redis.line import Command, Line, Reply, Script
from gateway.adapters.redis.settings import RedisSettings
from gateway.core.engine import Admission
from gateway.core.errors import BudgetExceeded, QuotaExceeded, Unavailable
from gateway.core.flights import LEASE_S, Looked
from gateway.core.meter import Settlement
from gateway.core.quotas import Charge, Standing, rate_headers, refusal, spent
from gateway.core.thresholds import Told, told_to_nobody

log = structlog.get_logger()

_CLAIM_MS = int(LEASE_S * 1000)
_REBUILD_LOCK_MS = 30_000
_REBUILD_POLL_S = 0.05
# A reservation that meets this many restarts of the store in a row gives up.
_RESTARTS = 3


class OpenReservation(Struct, frozen=True):
    """A reservation that nobody has settled yet."""

    id: str
    age_s: float


class StoreHealth(Struct, frozen=True):
    """`up`: the last exchange went well. `degraded`: request quotas come from the process's own memory."""

    up: bool
    degraded: bool
    replicas: int


class RedisStore:
    """Everything shared and short-lived. One per process and event loop; `start` before use, `close` at the end.

    `on_empty` is awaited, by one process at a time, when the server has started anew and its budgets cannot be
    trusted: it reads the ledger and calls `rebuild`. Until that is done no reservation is made. `on_near` is told of
    every quota that comes near its limit, once per window and limit.
    """

    def __init__(
        self,
        settings: RedisSettings,
        on_empty: Callable[["RedisStore"], Awaitable[None]] | None = None,
        on_near: Told = told_to_nobody,
    ) -> None:
        self.on_empty = on_empty
        self._on_near = on_near
        self._settings = settings
        self._take, self._settle = Script("take.v2"), Script("settle.v1")
        self._rebuild, self._beat = Script("rebuild.v1"), Script("beat.v1")
        self._look, self._claim = Script("look.v1"), Script("claim.v1")
        scripts = (self._take, self._settle, self._rebuild, self._beat, self._look, self._claim)
        self._line = Line(settings, scripts)
        self._alone, self._degraded = OwnMemory(), False
        self._replica, self._replicas = uuid.uuid4().hex, 1
        self._beating: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to be counted as a replica. Does not fail when the store is away."""
        await self._heard()
        self._beating = asyncio.create_task(self._keep_beating())

    async def close(self) -> None:
        """Stop being counted, and hang up."""
        if self._beating is not None:
            self._beating.cancel()
            with contextlib.suppress(Unavailable):
                await self._line.ask(("ZREM", self._key("replicas"), self._replica))
        await self._line.close()

    async def admit(
        self, invocation_id: str, charges: Sequence[Charge], cache_key: str | None, *, claims: bool = True
    ) -> Admission:
        """Take all charges or none, and look the answer up: one round trip. Raises QuotaExceeded.

        Where there is no answer and nobody is at it, its run is claimed, unless `claims` is false.

        While the store is away the charges are taken from this process's share (`degraded`), and nothing is kept.
        """
        commands = [self._taking(invocation_id, charges)] if charges else []
        if cache_key is not None:
            commands.append(self._looking(invocation_id, cache_key, claims))
        if not commands:
            return Admission()
        try:
            replies = await self._line.ask(*commands)
        except Unavailable:
            return self._admit_alone(invocation_id, charges)
        self._recovered()
        standings = self._standings(replies[0], charges, QuotaExceeded) if charges else []
        looked = _looked(replies[-1]) if cache_key is not None else Looked()
        return Admission(looked.kept, rate_headers(standings), claim=looked.claim)

    async def look(self, invocation_id: str, cache_key: str) -> Looked:
        """The answer, or a claim of its run: `mine` where nobody else has it. Raises Unavailable."""
        (reply,) = await self._line.ask(self._looking(invocation_id, cache_key, True))
        return _looked(reply)

    async def renew(self, invocation_id: str, cache_key: str) -> None:
        """The claim of a run lasts on. Raises Unavailable."""
        await self._line.ask(self._claim((self._key("f", cache_key),), invocation_id, _CLAIM_MS))

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
        self._alone.give_back(invocation_id, held)
        commands: list[Command] = [("ZREM", self._counter(charge), invocation_id) for charge in held]
        commands += [self._settling(settlement) for settlement in settlements]
        if keep is not None:
            key, answer, ttl_s = keep
            commands.append(("SET", self._key("c", key), answer, "EX", ttl_s))
        if claimed is not None:
            # After the answer: whoever waits must never find neither.
            commands.append(self._claim((self._key("f", claimed),), invocation_id, 0))
        if commands:
            await self._line.ask(*commands)

    async def reserve(self, reservation_id: str, charges: Sequence[Charge]) -> None:
        """Take all charges or none; again under the same id takes nothing more. Raises BudgetExceeded, Unavailable."""
        if not charges:
            return
        for _ in range(_RESTARTS):
            epoch = await self._line.server_id()
            (reply,) = await self._line.ask(self._taking(reservation_id, charges, epoch))
            if reply != b"stale":
                self._standings(reply, charges, BudgetExceeded)
                return
            await self._restored()
        raise Unavailable("The quota store keeps restarting.")

    async def standings(self, charges: Sequence[Charge]) -> list[Standing]:
        """How far the counters of charges with an amount of 0 are used: they are only looked at. Raises Unavailable."""
        (reply,) = await self._line.ask(self._taking("", charges))
        return self._standings(reply, charges, BudgetExceeded)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Replace estimates by the truth, each exactly once. Raises Unavailable.

        The record of the reservation knows what was taken; a settlement needs no charges.
        """
        if settlements:
            await self._line.ask(*(self._settling(settlement) for settlement in settlements))

    async def open_reservations(self, older_than_s: float, at_most: int = 1000) -> list[OpenReservation]:
        """The oldest reservations made at least so many seconds ago and not settled. Raises Unavailable."""
        time_reply, oldest = await self._line.ask(
            ("TIME",), ("ZRANGE", self._key("open"), 0, at_most - 1, "WITHSCORES")
        )
        now_us = int(time_reply[0]) * 1_000_000 + int(time_reply[1])
        pairs = zip(oldest[::2], oldest[1::2], strict=True)
        reservations = [OpenReservation(id.decode(), (now_us - float(at_us)) / 1e6) for id, at_us in pairs]
        return [reservation for reservation in reservations if reservation.age_s >= older_than_s]

    async def rebuild(self, usages: Iterable[tuple[Charge, int]], open: Iterable[tuple[str, Sequence[Charge]]]) -> None:
        """Write budgets anew: what is used of each charge's counter, and the reservations that are under way.

        Does nothing when the budgets are good, or were rebuilt by another process meanwhile. Raises Unavailable.
        """
        counters = [[charge.key, charge.mode, used, charge.limit, self._span(charge)] for charge, used in usages]
        reservations = [[id, [self._taken(charge) for charge in charges]] for id, charges in open]
        await self._line.ask(
            self._rebuild(
                (self._key("epoch"), self._key("open"), self._key("rebuilding")),
                await self._line.server_id(),
                self._key("q", ""),
                self._key("r", ""),
                msgspec.json.encode(counters),
                msgspec.json.encode(reservations),
            )
        )

    async def count_for(self, budgets: str, *, changed: bool) -> None:
        """Where the counters were kept for other budgets, or budgets `changed` under this process, they are rebuilt
        before the next reservation. Raises Unavailable.
        """
        (before,) = await self._line.ask(("SET", self._key("budgets"), budgets, "GET"))
        if changed or before != budgets.encode():
            await self._line.ask(("DEL", self._key("epoch")))

    async def keys_version(self) -> int:
        """Changes when a key was made or revoked anywhere. Raises Unavailable."""
        (version,) = await self._line.ask(("GET", self._key("keys:version")))
        return int(version or 0)

    async def bump_keys_version(self) -> None:
        """Tell every replica that keys have changed. Raises Unavailable."""
        await self._line.ask(("INCR", self._key("keys:version")))

    async def ping(self) -> None:
        """Raises Unavailable when the store does not answer."""
        await self._line.ask(("PING",))

    def health(self) -> StoreHealth:
        """As seen by the last exchanges; asks nobody."""
        return StoreHealth(self._line.up, self._degraded, self._replicas)

    def _admit_alone(self, invocation_id: str, charges: Sequence[Charge]) -> Admission:
        if not self._degraded:
            log.warning("quotas_degraded", replicas=self._replicas)
            self._degraded = True
        # What budgets have left is known to the store alone.
        taken = [charge for charge in charges if charge.amount > 0]
        standings = self._alone.take(invocation_id, taken, self._replicas)
        return Admission(rates=rate_headers(standings), degraded=True)

    def _recovered(self) -> None:
        if self._degraded:
            log.info("quotas_recovered")
            self._degraded = False
            self._alone.forget()

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(self._settings.beat_s)
            await self._heard()

    async def _heard(self) -> None:
        gone_ms = int(self._settings.beat_s * 3000)
        with contextlib.suppress(Unavailable):
            (count,) = await self._line.ask(self._beat((self._key("replicas"),), self._replica, gone_ms))
            self._replicas = max(1, count)

    async def _restored(self) -> None:
        """Wait until the budgets are good again; all reservations of this process wait for the same attempt."""
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.create_task(self._restore())
        try:
            async with asyncio.timeout(self._settings.rebuild_wait_s):
                await asyncio.shield(self._restoring)
        except TimeoutError:
            raise Unavailable("The budgets are being rebuilt from the ledger.", retry_after_s=1) from None

    async def _restore(self) -> None:
        lock = self._key("rebuilding")
        while True:
            epoch, mine = await self._line.ask(
                ("GET", self._key("epoch")), ("SET", lock, self._replica, "NX", "PX", _REBUILD_LOCK_MS)
            )
            if mine and epoch != (await self._line.server_id()).encode():
                return await self._rebuild_once(lock)
            if mine:
                await self._line.ask(("DEL", lock))
            if epoch == (await self._line.server_id()).encode():
                return None
            await asyncio.sleep(_REBUILD_POLL_S)

    async def _rebuild_once(self, lock: str) -> None:
        log.warning("store_empty")
        try:
            if self.on_empty is None:
                await self.rebuild((), ())
            else:
                await self.on_empty(self)
        except BaseException as error:
            with contextlib.suppress(Unavailable):
                await self._line.ask(("DEL", lock))
            if isinstance(error, Unavailable) or not isinstance(error, Exception):
                raise
            log.exception("budgets_not_rebuilt")
            raise Unavailable("The budgets could not be rebuilt from the ledger.") from error

    def _standings(
        self, reply: Reply, charges: Sequence[Charge], error: type[QuotaExceeded] | type[BudgetExceeded]
    ) -> list[Standing]:
        """What the script said of each charge. Raises `error` where it refused one."""
        refused, wait_us, *numbers = reply
        said = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        standings = []
        for charge, (used, reset_us, near) in zip(charges, said, strict=False):
            standings.append(Standing(charge, charge.limit, used, reset_us / 1e6))
            if near:
                self._on_near(standings[-1])
        if refused:
            raise refusal(error, standings[refused - 1], None if wait_us < 0 else wait_us / 1e6)
        return standings

    def _taking(self, holder: str, charges: Sequence[Charge], epoch: str = "") -> Command:
        keys = [self._counter(charge) for charge in charges]
        if epoch:
            keys += [self._key("r", holder), self._key("open"), self._key("epoch")]
        arguments: list[str | int] = []
        for charge in charges:
            arguments += (charge.mode, charge.resource, charge.limit, charge.amount, self._span(charge))
        return self._take(keys, holder, epoch, *arguments)

    def _looking(self, who: str, cache_key: str, claims: bool) -> Command:
        keys = (self._key("c", cache_key), self._key("f", cache_key))
        return self._look(keys, who, _CLAIM_MS if claims else 0)

    def _settling(self, settlement: Settlement) -> Command:
        usage, id = settlement.usage, settlement.reservation_id
        keys = (self._key("r", id), self._key("open"))
        return self._settle(keys, id, spent("tokens", usage), spent("cost", usage))

    def _taken(self, charge: Charge) -> list[str | int]:
        return [charge.key, charge.mode, charge.resource, charge.amount, charge.limit, self._span(charge)]

    def _span(self, charge: Charge) -> int:
        """The time of a charge in its mode's unit, as the scripts want it."""
        if charge.mode == "gcra":
            return charge.period_s * 1_000_000
        return charge.ends_at_s * 1000 if charge.mode == "window" else self._settings.lease_s * 1000

    def _counter(self, charge: Charge) -> str:
        return self._key("q", charge.key)

    def _key(self, kind: str, name: str | None = None) -> str:
        return f"{self._settings.prefix}{kind}" if name is None else f"{self._settings.prefix}{kind}:{name}"


def _looked(reply: Reply) -> Looked:
    if isinstance(reply, bytes):
        return Looked(reply)
    return Looked(claim="none" if reply is None else "mine" if reply else "other")
