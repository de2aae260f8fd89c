"""What a process does beside answering: sweep, reload, check, keep the books, audit, watch deadlines, send webhooks."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from gateway.adapters.alerts import Alerts
from gateway.adapters.redis import RedisSettings, RedisStore
from gateway.adapters.redis.peers import Peers
from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.claims import SqlClaims
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.drift import SqlDrift
from gateway.adapters.sql.gpu_hours import SqlGpuHours
from gateway.adapters.sql.ledger import SqlLedger
from gateway.adapters.sql.outbox import SqlOutbox
from gateway.adapters.sql.review_sweep import SqlReviewSweep
from gateway.adapters.sql.samples import SqlSamples
from gateway.adapters.sql.sweep import Sweeper
from gateway.adapters.webhooks import HttpSender
from gateway.app.stages import Stages
from gateway.core.auditor import Auditor
from gateway.core.bookkeeping import Bookkeeper
from gateway.core.canaries import Canaries
from gateway.core.clock import Clock
from gateway.core.courier import Courier
from gateway.core.drift import DriftWatch
from gateway.core.pins import Pins
from gateway.core.registry import Registry
from gateway.core.review_clock import ReviewClock
from gateway.core.sweep import sweep_for_ever
from gateway.core.telemetry import Observers
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.adapters.watch import Watch


class Follower(Protocol):
    """Something that goes on by itself."""

    async def follow(self) -> None:
        """Go on until cancelled."""


class Ground(Struct, frozen=True):
    """What everything in a process stands on."""

    settings: Settings
    clock: Clock
    registry: Callable[[], Registry]
    stages: Stages
    database: Database
    redis: RedisSettings
    store: RedisStore
    ledger: SqlLedger
    watch: "Watch"
    alerts: Alerts


class Background:
    """Built at once, started with the process; `others` go on beside it."""

    def __init__(self, ground: Ground, others: tuple[Follower, ...]) -> None:
        settings, clock, registry, database = ground.settings, ground.clock, ground.registry, ground.database
        observers, metrics = Observers(ground.watch.observers), ground.watch.metrics
        models, told = ground.stages, [metrics.drifted, *([ground.alerts.tell] if settings.alert_url else [])]
        self.pins = Pins(registry, models.verify)
        self.canaries = Canaries(
            registry, models, ground.store, ground.ledger, clock, settings.zone, settings.canary_s, observers
        )
        self.peers = Peers(ground.redis, lambda: {name: task.fingerprint for name, task in registry().every.items()})
        self._auditor = Auditor(
            SqlSamples(database),
            registry,
            ground.store,
            ground.ledger,
            clock,
            settings.zone,
            observers,
            metrics.audited,
        )
        self._sender = HttpSender()
        self._followers: tuple[Follower, ...] = (
            *others,
            self.pins,
            self.canaries,
            self.peers,
            ground.alerts,
            _bookkeeper(ground),
            DriftWatch(SqlDrift(database), registry, clock, told),
            ReviewClock(SqlReviewSweep(database), clock, settings.sweep_s, settings.review_text_days),
            Courier(SqlOutbox(database), self._sender, clock, settings.webhook_retry_s),
        )
        sweeper = Sweeper(database, clock.new_id, clock.now)
        self._sweep = partial(sweep_for_ever, sweeper, ground.store, clock, settings.sweep_s, settings.orphan_after_s)
        self._tasks: list[asyncio.Task[None]] = []
        self._auditing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the event loop is that of the process."""
        going: list[Coroutine[Any, Any, None]] = [self._sweep(), *(each.follow() for each in self._followers)]
        self._tasks = [asyncio.create_task(each) for each in going]
        self._auditing = asyncio.create_task(self._auditor.follow())

    async def finish(self) -> None:
        """Begin nothing new; returns when the audits under way have ended."""
        for task in self._tasks:
            task.cancel()
        self._auditor.close()
        if self._auditing is not None:
            await self._auditing

    async def aclose(self) -> None:
        """Hang up."""
        await self.peers.aclose()
        await self._sender.aclose()


def _bookkeeper(ground: Ground) -> Bookkeeper:
    return Bookkeeper(
        SqlBooks(ground.database, ground.settings.zone),
        SqlGpuHours(ground.database, ground.settings.zone),
        lambda: {name: model.tariff for name, model in ground.registry().models.items()},
        SqlClaims(ground.database),
        ground.clock,
    )
