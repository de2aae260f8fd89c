"""One worker: what it is made of, and how it starts and stops."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog
from litestar import Litestar

from gateway.adapters.alerts import Alerts
from gateway.adapters.raters import NltkRaters
from gateway.adapters.redis import RedisSettings, RedisStore
from gateway.adapters.redis.desk import RedisDesk
from gateway.adapters.sql.audit import SqlAudit
from gateway.adapters.sql.claims import SqlClaims
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.keys import SqlKeys
from gateway.adapters.sql.ledger import SqlLedger, open_ledger
from gateway.adapters.sql.migrate import is_current, prepare_partitions
from gateway.adapters.sql.opinions import SqlOpinions
from gateway.adapters.sql.quality import SqlQuality
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.reviews import SqlReviews
from gateway.adapters.sql.runs import SqlFeedback, SqlRuns
from gateway.adapters.sql.savings import SqlPromptSamples
from gateway.adapters.sql.spending import SqlSpending
from gateway.adapters.sql.teams import SqlTeams
from gateway.adapters.sql.usage import SqlUsage
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.app.background import Background, Ground
from gateway.app.shown import Shown
from gateway.app.stages import Stages, load_registry, new_id
from gateway.core.budgets import counters
from gateway.core.clock import Clock
from gateway.core.desk import Desk
from gateway.core.engine import Engine
from gateway.core.errors import Unavailable
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.prompt_samples import PromptSampler
from gateway.core.registry import Registry
from gateway.core.reload import Reloader
from gateway.core.task import Model
from gateway.core.team_limits import TeamLimits
from gateway.core.telemetry import Observers
from gateway.core.thresholds import Thresholds
from gateway.settings import Settings
from gateway.web.departure import Departure
from gateway.web.doors import Doors, Telemetry, WebSettings
from gateway.web.wiring import create_app

if TYPE_CHECKING:
    from gateway.adapters.readings import ProcessState
    from gateway.adapters.watch import Watch

log = structlog.get_logger()


class Process:
    """One worker process, and its application."""

    def __init__(self, settings: Settings) -> None:
        """Raises InvalidConfig with every problem of settings, tasks, prompts and models."""
        if not settings.redis_url:
            hint = "`gateway dev` starts a Valkey"
            raise InvalidConfig([Problem("environment", "GATEWAY_REDIS_URL", "this setting is missing", hint)])
        self._settings = settings
        self._clock = Clock(new_id=new_id)
        self._stages = Stages()
        self._reloader = Reloader(settings.home_path, lambda: load_registry(settings, self._stages), self._adopt)
        self._registry = load_registry(settings, self._stages)
        self._database = Database(settings.database)
        self._watch = self._open_watch()
        alerts = Alerts(settings.alert_url)
        near = Thresholds([self._watch.metrics.near_limit, *([alerts.tell] if settings.alert_url else [])])
        self._redis = RedisSettings(url=settings.redis_url, timeout_s=settings.redis_timeout_s)
        self._store = RedisStore(self._redis, self._rebuild_budgets, near)
        self._reviewers = RedisDesk(self._redis)
        self._spending = SqlSpending(self._database)
        self._limits = TeamLimits(
            SqlTeams(self._database),
            self._store,
            lambda: {name: task.limits for name, task in self._registry.tasks.items()},
        )
        self._ledger: SqlLedger = open_ledger(
            settings.database, sync=settings.ledger == "sync", committed=self._watch.metrics.committed
        )
        prompts = PromptSampler(SqlPromptSamples(self._database), settings.prompt_sample)
        self._engine = Engine(
            self._store,
            self._ledger,
            self._clock,
            settings.zone,
            settings.permits,
            self._limits.of_team,
            SqlClaims(self._database),
            observer=Observers((prompts, *self._watch.observers)),
        )
        self._background = self._behind(alerts, prompts)
        self._shown = Shown(
            settings,
            self._clock,
            self._current,
            self._database,
            self._store,
            self._limits,
            self._reloader,
            self._background.pins,
            self._background.canaries,
            self._background.peers,
        )
        self._watch.looking_at(self._state, self._shown.looks())
        self._departure = Departure(settings.leave_s)

    def app(self) -> Litestar:
        """The web application over this process."""
        settings = self._settings
        doors = Doors(
            engine=self._engine,
            registry=self._current,
            keys=SqlKeys(self._database),
            teams=SqlTeams(self._database),
            runs=SqlRuns(self._database),
            feedback=SqlFeedback(self._database),
            usage=SqlUsage(self._database, settings.zone),
            versions=SqlFingerprints(self._database),
            audit=SqlAudit(self._database),
            desk=self._desk(),
            webhooks=SqlWebhooks(self._database),
            quality=SqlQuality(self._database),
            people=SqlOpinions(self._database),
            raters=NltkRaters(),
            sessions=self._reviewers,
            exposure=self._reviewers,
            clock=self._clock,
            checks=self._shown.checks(),
            draining=lambda: self._departure.begun,
            lifespan=(self._living,),
            telemetry=Telemetry(
                sampled=self._watch.sampled,
                problem=self._watch.metrics.problem,
                metrics=self._watch.render,
                metrics_open=settings.metrics == "open",
            ),
        )
        web = WebSettings(
            max_body_bytes=settings.max_body_bytes,
            body_timeout_s=settings.body_timeout_s,
            batch_max=settings.batch_max,
            zone=settings.zone,
            currency=settings.currency,
        )
        return create_app(doors, web)

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        """From the first request to the last row."""
        await self._prepare()
        watching = asyncio.create_task(self._watch.follow())
        self._departure.watch()
        self._background.start()
        _spare_what_stays()
        log.info("ready", tasks={name: task.fingerprint for name, task in self._registry.tasks.items()})
        try:
            yield
        finally:
            self._departure.begun = True
            watching.cancel()
            ending = asyncio.gather(self._engine.drain(), self._background.finish())
            with suppress(TimeoutError):
                await asyncio.wait_for(ending, self._settings.drain_s)
            await self._background.aclose()
            await self._stages.aclose()
            await self._ledger.aclose()
            await self._store.close()
            await self._reviewers.aclose()
            await self._database.aclose()
            await self._watch.aclose()
            log.info("stopped")

    def _current(self) -> Registry:
        return self._registry

    async def _prepare(self) -> None:
        if not await is_current(self._database, self._settings.home_path / "migrations"):
            problem = Problem("database", "", "the schema is not that of this version", "run `gateway db upgrade`")
            raise InvalidConfig([problem])
        await prepare_partitions(self._database, self._clock.now())
        await self._store.start()
        with suppress(Unavailable):
            # A store that is away is told as soon as it is back.
            await self._limits.refresh()
        await self._remember(self._registry)

    async def _adopt(self, registry: Registry) -> None:
        """Serve these tasks from the next request on; requests under way hold the task that they began with.

        Raises Unavailable, and changes nothing, where the versions cannot be remembered.
        """
        await self._remember(registry)
        self._registry = registry
        with suppress(Unavailable):
            await self._limits.refresh()
        _spare_what_stays()

    async def _remember(self, registry: Registry) -> None:
        fingerprints = SqlFingerprints(self._database)
        for name, task in registry.every.items():
            await fingerprints.remember(task.fingerprint, name, task.config, self._clock.now())

    async def _rebuild_budgets(self, store: RedisStore) -> None:
        """The store came up without its counters: the ledger knows them."""
        await self._limits.refresh()
        now, zone = self._clock.now(), self._settings.zone
        found = await counters(self._spending, self._limits.windows(), self._limits.of, now, zone)
        await store.rebuild(found.used, found.reserved)

    def _behind(self, alerts: Alerts, prompts: PromptSampler) -> Background:
        ground = Ground(
            self._settings,
            self._clock,
            self._current,
            self._stages,
            self._database,
            self._redis,
            self._store,
            self._ledger,
            self._watch,
            alerts,
        )
        return Background(ground, (self._limits, prompts, self._reloader))

    def _desk(self) -> Desk:
        return Desk(
            SqlReviews(self._database),
            SqlReviewBook(self._database),
            self._current,
            self._clock,
            self._settings.review_undo_s,
            self._settings.review_lease_s,
        )

    def _open_watch(self) -> "Watch":
        # Not before the workers were started: prometheus_client decides at its import whether they measure together.
        from gateway.adapters.watch import Watch

        def model(name: str) -> Model | None:
            found = self._registry.models.get(name)
            return found.declared if found is not None else None

        return Watch(os.environ, self._clock, model, text=self._settings.trace_text)

    def _state(self) -> "ProcessState":
        from gateway.adapters.readings import ProcessState

        health = self._store.health()
        replicas = self._stages.replica_states()
        return ProcessState(self._engine.in_flight, self._ledger.depth, health.up, health.degraded, replicas)


def _spare_what_stays() -> None:
    """Modules and tasks live as long as the process: from now on no search for garbage goes through them.

    With a model library among them, each full search had stopped the worker for a fifth of a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
