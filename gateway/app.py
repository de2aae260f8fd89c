"""Composition root: the only place that builds adapters and wires them to the web layer."""

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import structlog
import uuid_utils
from litestar import Litestar
from msgspec import Struct

from gateway import settings as process_settings
from gateway.adapters.alerts import Alerts
from gateway.adapters.logs import configure_logs
from gateway.adapters.redis import RedisSettings, RedisStore
from gateway.adapters.redis.desk import RedisDesk
from gateway.adapters.redis.peers import Peers
from gateway.adapters.schema import Schema
from gateway.adapters.sql.audit import SqlAudit
from gateway.adapters.sql.books import SqlBooks
from gateway.adapters.sql.claims import SqlClaims
from gateway.adapters.sql.database import Database
from gateway.adapters.sql.drift import SqlDrift
from gateway.adapters.sql.fingerprints import SqlFingerprints
from gateway.adapters.sql.gpu_hours import SqlGpuHours
from gateway.adapters.sql.keys import SqlKeys
from gateway.adapters.sql.ledger import SqlLedger, open_ledger
from gateway.adapters.sql.migrate import is_current, prepare_partitions
from gateway.adapters.sql.opinions import SqlOpinions
from gateway.adapters.sql.outbox import SqlOutbox
from gateway.adapters.sql.quality import SqlQuality
from gateway.adapters.sql.review_book import SqlReviewBook
from gateway.adapters.sql.review_sweep import SqlReviewSweep
from gateway.adapters.sql.reviews import SqlReviews
from gateway.adapters.sql.runs import SqlFeedback, SqlRuns
from gateway.adapters.sql.samples import SqlSamples
from gateway.adapters.sql.savings import SqlPromptSamples
from gateway.adapters.sql.spending import SqlSpending
from gateway.adapters.sql.sweep import Sweeper
from gateway.adapters.sql.teams import SqlTeams
from gateway.adapters.sql.usage import SqlUsage
from gateway.adapters.sql.webhooks import SqlWebhooks
from gateway.adapters.webhooks import HttpSender
from gateway.core.auditor import Auditor
from gateway.core.bookkeeping import Bookkeeper
from gateway.core.budgets import counters
from gateway.core.canaries import Canaries
from gateway.core.cascade import Runner
from gateway.core.clock import Clock
from gateway.core.courier import Courier
from gateway.core.desk import Desk
from gateway.core.drift import DriftWatch
from gateway.core.engine import Engine
from gateway.core.errors import Unavailable
from gateway.core.examples import ExamplesRun, run_examples
from gateway.core.loaded import LoadedModel, StageFiles, Validator
from gateway.core.pins import Pins
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.prompt_samples import PromptSampler
from gateway.core.registry import Registry, load
from gateway.core.reload import Reloader
from gateway.core.reuse import Reuse
from gateway.core.review_clock import ReviewClock
from gateway.core.sweep import sweep_for_ever
from gateway.core.task import ChainStage, CnnStage, Model, RulesStage, Stage
from gateway.core.team_limits import TeamLimits
from gateway.core.telemetry import Observers, Reading, ReplicaState
from gateway.core.thresholds import Thresholds
from gateway.settings import Settings
from gateway.web.departure import Departure
from gateway.web.doors import Check, Doors, Telemetry, WebSettings
from gateway.web.wiring import create_app

if TYPE_CHECKING:
    from gateway.adapters.chain_builder import ChainBuilder
    from gateway.adapters.readings import Look, ProcessState
    from gateway.adapters.watch import Watch

log = structlog.get_logger()

_SHOWN_PROBLEMS = 20
_MOST_HEAD_BYTES = 65_536
_OTHER_FILES = 200


class Stages:
    """Core's Builder. Heavy adapters are imported only where a task uses them; chains share their doors."""

    def __init__(self) -> None:
        self._chains: ChainBuilder | None = None
        self._reuse = Reuse()

    def schema(self, document: Any, file: str) -> Validator:
        """Compile a JSON schema."""
        return Schema(document, file)

    def stage(self, stage: Stage, files: StageFiles, place: str) -> Runner:
        """Build the runner of a declared stage."""
        match stage:
            case RulesStage():
                from gateway.adapters.rules import build_rules

                return self._reuse.stage(stage, files, lambda: build_rules(stage, files, place))
            case CnnStage():
                from gateway.adapters.cnn import build_cnn

                return self._reuse.stage(stage, files, lambda: build_cnn(stage, files, place))
            case ChainStage():
                return self._chain_builder().build(stage, files, place)

    def conversation(self, stage: ChainStage, model: LoadedModel) -> Runner:
        """Build the stage of a model that is asked without a task."""
        from gateway.adapters.conversation import build_conversation

        return build_conversation(self._chain_builder(), stage, model)

    async def verify(self, model: LoadedModel) -> tuple[str, ...]:
        """What the model's servers serve other than the pinned model, in words."""
        return await self._chain_builder().verify(model)

    def urls(self, model: LoadedModel) -> Sequence[str]:
        """Where the replicas of a model are."""
        return self._chain_builder().urls(model)

    def only(self, model: LoadedModel, url: str) -> AbstractContextManager[None]:
        """Within the block, this replica is asked and no other."""
        return self._chain_builder().only(model, url)

    def bar(self, model: LoadedModel, url: str, why: str, said_by: str) -> None:
        """Take a replica out, or in again where nothing is against it any more."""
        self._chain_builder().bar(model, url, why, said_by)

    def replica_states(self) -> Sequence[ReplicaState]:
        """The replicas of all models, as this process sees them."""
        return list(self._chains.replica_states()) if self._chains is not None else ()

    async def aclose(self) -> None:
        """Close the connections to model servers."""
        if self._chains is not None:
            await self._chains.aclose()

    def _chain_builder(self) -> "ChainBuilder":
        if self._chains is None:
            from gateway.adapters.chain_builder import ChainBuilder

            self._chains = ChainBuilder()
        return self._chains


def load_registry(settings: Settings, stages: Stages | None = None) -> Registry:
    """Everything under the home folder, built. Raises InvalidConfig with every problem."""
    return load(settings.home_path, stages or Stages())


class Checked(Struct, frozen=True):
    """How each task's examples went, and in which words a model server differs from what models.toml pins."""

    examples: dict[str, ExamplesRun]
    differences: tuple[str, ...]


async def check_online(settings: Settings) -> Checked:
    """Ask every model server what it serves, and run all examples. Raises InvalidConfig."""
    stages = Stages()
    registry, clock = load_registry(settings, stages), Clock(new_id=_new_id)
    try:
        differences = [said for model in registry.models.values() for said in await stages.verify(model)]
        examples = {name: await run_examples(task, clock) for name, task in registry.tasks.items() if task.examples}
    finally:
        await stages.aclose()
    return Checked(examples, tuple(differences))


def create() -> Litestar:
    """The application of one worker process, from its environment. Ends the process where that is wrong."""
    try:
        settings = process_settings.read(os.environ)
        configure_logs(settings.log)
        return Process(settings).app()
    except InvalidConfig as error:
        # The server that calls this would show a traceback, and hide the list in it.
        sys.exit(f"{len(error.problems)} problem(s)\n{error}")


class Process:
    """One worker: what it is made of, and how it starts and stops."""

    def __init__(self, settings: Settings) -> None:
        """Raises InvalidConfig with every problem of settings, tasks, prompts and models."""
        if not settings.redis_url:
            hint = "`gateway dev` starts a Valkey"
            raise InvalidConfig([Problem("environment", "GATEWAY_REDIS_URL", "this setting is missing", hint)])
        self._settings = settings
        self._clock = Clock(new_id=_new_id)
        self._stages = Stages()
        self._reloader = Reloader(settings.home_path, lambda: load_registry(settings, self._stages), self._adopt)
        self._registry = load_registry(settings, self._stages)
        self._pins = Pins(lambda: self._registry, self._stages.verify)
        self._database = Database(settings.database)
        self._alerts = Alerts(settings.alert_url)
        self._watch = self._open_watch()
        near = Thresholds([self._watch.metrics.near_limit, *([self._alerts.tell] if settings.alert_url else [])])
        self._store = RedisStore(RedisSettings(url=settings.redis_url), self._rebuild_budgets, near)
        self._reviewers = RedisDesk(RedisSettings(url=settings.redis_url))
        self._spending = SqlSpending(self._database)
        self._limits = TeamLimits(
            SqlTeams(self._database),
            self._store,
            lambda: {name: task.limits for name, task in self._registry.tasks.items()},
        )
        self._ledger: SqlLedger = open_ledger(
            settings.database, sync=settings.ledger == "sync", committed=self._watch.metrics.committed
        )
        self._prompts = PromptSampler(SqlPromptSamples(self._database), settings.prompt_sample)
        self._engine = Engine(
            self._store,
            self._ledger,
            self._clock,
            settings.zone,
            settings.permits,
            self._limits.of_team,
            SqlClaims(self._database),
            observer=Observers((self._prompts, *self._watch.observers)),
        )
        self._auditor = Auditor(
            SqlSamples(self._database),
            lambda: self._registry,
            self._store,
            self._ledger,
            self._clock,
            settings.zone,
            Observers(self._watch.observers),
            self._watch.metrics.audited,
        )
        self._drift_watch = DriftWatch(
            SqlDrift(self._database),
            lambda: self._registry,
            self._clock,
            [self._watch.metrics.drifted, *([self._alerts.tell] if settings.alert_url else [])],
        )
        self._canaries = Canaries(
            lambda: self._registry,
            self._stages,
            self._store,
            self._ledger,
            self._clock,
            settings.zone,
            settings.canary_s,
            Observers(self._watch.observers),
        )
        self._peers = Peers(
            settings.redis_url, lambda: {name: task.fingerprint for name, task in self._registry.every.items()}
        )
        books = SqlBooks(self._database, settings.zone)
        self._bookkeeper = Bookkeeper(
            books,
            SqlGpuHours(self._database, settings.zone),
            lambda: {name: model.tariff for name, model in self._registry.models.items()},
            SqlClaims(self._database),
            self._clock,
        )
        self._sweeper = Sweeper(self._database, self._clock.new_id, self._clock.now)
        timed = SqlReviewSweep(self._database)
        self._review_clock = ReviewClock(timed, self._clock, settings.sweep_s, settings.review_text_days)
        self._sender = HttpSender()
        self._courier = Courier(SqlOutbox(self._database), self._sender, self._clock, settings.webhook_retry_s)
        self._departure = Departure(settings.leave_s)

    def app(self) -> Litestar:
        """The web application over this process."""
        doors = Doors(
            engine=self._engine,
            registry=lambda: self._registry,
            keys=SqlKeys(self._database),
            teams=SqlTeams(self._database),
            runs=SqlRuns(self._database),
            feedback=SqlFeedback(self._database),
            usage=SqlUsage(self._database, self._settings.zone),
            versions=SqlFingerprints(self._database),
            audit=SqlAudit(self._database),
            desk=self._desk(),
            webhooks=SqlWebhooks(self._database),
            quality=SqlQuality(self._database),
            people=SqlOpinions(self._database),
            sessions=self._reviewers,
            exposure=self._reviewers,
            clock=self._clock,
            checks=self._checks(),
            draining=lambda: self._departure.begun,
            lifespan=(self._living,),
            telemetry=Telemetry(
                sampled=self._watch.sampled,
                problem=self._watch.metrics.problem,
                metrics=self._watch.render,
                metrics_open=self._settings.metrics == "open",
            ),
        )
        settings = self._settings
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
        sweeping = asyncio.create_task(
            sweep_for_ever(
                self._sweeper, self._store, self._clock, self._settings.sweep_s, self._settings.orphan_after_s
            )
        )
        following = [
            asyncio.create_task(each.follow())
            for each in (
                self._limits,
                self._bookkeeper,
                self._prompts,
                self._reloader,
                self._pins,
                self._canaries,
                self._peers,
                self._alerts,
                self._drift_watch,
                self._review_clock,
                self._courier,
            )
        ]
        auditing = asyncio.create_task(self._auditor.follow())
        log.info("ready", tasks={name: task.fingerprint for name, task in self._registry.tasks.items()})
        try:
            yield
        finally:
            self._departure.begun = True
            sweeping.cancel()
            watching.cancel()
            self._auditor.close()
            for each in following:
                each.cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(self._engine.drain(), auditing), self._settings.drain_s)
            await self._peers.aclose()
            await self._stages.aclose()
            await self._sender.aclose()
            await self._ledger.aclose()
            await self._store.close()
            await self._reviewers.aclose()
            await self._database.aclose()
            await self._watch.aclose()
            log.info("stopped")

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

    def _desk(self) -> Desk:
        return Desk(
            SqlReviews(self._database),
            SqlReviewBook(self._database),
            lambda: self._registry,
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

        watch = Watch(os.environ, self._clock, model, text=self._settings.trace_text)
        watch.looking_at(self._state, self._looks())
        return watch

    def _state(self) -> "ProcessState":
        from gateway.adapters.readings import ProcessState

        health = self._store.health()
        replicas = self._stages.replica_states()
        return ProcessState(self._engine.in_flight, self._ledger.depth, health.up, health.degraded, replicas)

    def _looks(self) -> "Mapping[str, Look]":
        """What a scrape looks up."""
        from gateway.adapters import readings

        async def versions() -> Sequence[Reading]:
            tasks = list(self._registry.every.values())
            return readings.versions(tasks, self._peers.differing, len(self._reloader.problems))

        async def parts() -> Sequence[Reading]:
            return await readings.parts({name: check.probe for name, check in self._checks().items()})

        async def reviews() -> Sequence[Reading]:
            book, now = SqlReviewBook(self._database), self._clock.now()
            owners = {task.declared.owner for task in self._registry.tasks.values()}
            depths = [depth for owner in owners for depth in await book.depth(owner, now)]
            return readings.review_queue(depths, now)

        async def budgets() -> Sequence[Reading]:
            teams = [team.name for team in await SqlTeams(self._database).all()]
            tasks, now = self._registry.every, self._clock.now()
            charges = readings.budget_charges(tasks, teams, self._limits.of, now, self._settings.zone)
            return await readings.budgets(charges, self._store.standings)

        return {"versions": versions, "parts": parts, "reviews": reviews, "budgets": budgets}

    def _checks(self) -> Mapping[str, Check]:
        async def database() -> None:
            await self._database.ping()

        async def store() -> str | None:
            await self._store.ping()
            return "request quotas come from this process's share" if self._store.health().degraded else None

        async def config() -> str | None:
            if not (problems := self._reloader.problems):
                return None
            shown = "; ".join(f"{p.file}: {p.path}: {p.message}" for p in problems[:_SHOWN_PROBLEMS])
            return f"the last edit changed nothing, it has {len(problems)} problem(s): {shown}"

        async def models() -> str | None:
            # Addresses of servers are in the log; the page is public.
            names = ", ".join(f"`{name}`" for name in sorted(self._pins.differing))
            wrong = ", ".join(f"`{name}`" for name in sorted(self._canaries.wrong))
            said = [f"not what models.toml pins, or away: {names}"] if names else []
            said += [f"wrong answers to canaries: {wrong}"] if wrong else []
            return "; ".join(said) or None

        async def peers() -> str | None:
            names = ", ".join(f"`{name}`" for name in self._peers.differing)
            return f"replicas serve different versions of {names}" if names else None

        return {
            "database": Check(database, required=True),
            "store": Check(store),
            "config": Check(config),
            "models": Check(models),
            "peers": Check(peers),
        }


def serve(settings: Settings, target: str = "gateway.app:create") -> None:
    """Run the workers until SIGTERM or SIGINT. One that cannot start ends them all."""
    from granian import Granian
    from granian.constants import Interfaces, Loops
    from granian.http import HTTP1Settings

    granian = Granian(
        target,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        workers=settings.workers,
        loop=Loops.uvloop,
        factory=True,
        websockets=False,
        # A client has as long for its head as for its body; what does not fit the buffer is refused.
        http1_settings=HTTP1Settings(
            header_read_timeout=int(settings.body_timeout_s * 1000), max_buffer_size=_MOST_HEAD_BYTES
        ),
        log_access=False,
        log_level="warning",  # type: ignore[arg-type]
        # Of connections, and not of requests: beyond the permits the application itself answers 503.
        backpressure=_connections(settings.connections),
        workers_kill_timeout=int(settings.leave_s + settings.drain_s) + 5,
    )
    with TemporaryDirectory(prefix="taskgate-metrics-") as folder:
        # The workers write what they measure to files in here, so that whichever is asked can show the sums.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        granian.serve()


def _connections(wanted: int) -> int:
    """As many as wanted, or as the system's limit of open files allows; the soft one is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted + _OTHER_FILES if hard == resource.RLIM_INFINITY else min(wanted + _OTHER_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    return max(1, min(wanted, max(soft, allowed) - _OTHER_FILES))


def _new_id() -> str:
    return str(uuid_utils.uuid7())
