"""What the composition root hands to the web layer: ports of the core, and a handful of settings."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from zoneinfo import ZoneInfo

from msgspec import Struct, field

from gateway.core.agreement import PeopleBook, Raters
from gateway.core.audit import AuditLog
from gateway.core.clock import Clock
from gateway.core.desk import Desk
from gateway.core.engine import Engine
from gateway.core.keys import KeyStore
from gateway.core.quality import QualityBook
from gateway.core.records import FeedbackStore, Runs, Teams, UsageReport
from gateway.core.registry import Registry
from gateway.core.sessions import Exposure, Sessions
from gateway.core.telemetry import Sampler
from gateway.core.versions import Versions
from gateway.core.webhooks import Webhooks


class Check(Struct, frozen=True):
    """Looks at one part of the deployment.

    `probe` returns None where all is well, or a sentence on what is degraded; it raises where the part is down.
    A process whose `required` part is down is not ready.
    """

    probe: Callable[[], Awaitable[str | None]]
    required: bool = False


class Telemetry(Struct, frozen=True):
    """What the web layer tells, and can be asked for.

    `sampled` decides on the trace of a request, `problem` hears the code of each error, `metrics` renders them all in
    Prometheus's text format. With `metrics_open` they can be read without a key.
    """

    sampled: Sampler = lambda _, parent: parent is not False
    problem: Callable[[str], None] = lambda _: None
    metrics: Callable[[], Awaitable[bytes]] | None = None
    metrics_open: bool = False


class Doors(Struct, frozen=True, kw_only=True):
    """Everything behind the web layer.

    `registry` returns the current one: hot reload swaps it between two requests. `draining` says that the process is
    about to stop and wants no new traffic. `lifespan` are context managers that live as long as the application.
    """

    engine: Engine
    registry: Callable[[], Registry]
    keys: KeyStore
    teams: Teams
    runs: Runs
    feedback: FeedbackStore
    usage: UsageReport
    versions: Versions
    audit: AuditLog
    desk: Desk
    webhooks: Webhooks
    quality: QualityBook
    people: PeopleBook
    raters: Raters
    sessions: Sessions
    exposure: Exposure
    clock: Clock
    checks: Mapping[str, Check] = field(default_factory=dict)
    draining: Callable[[], bool] = lambda: False
    lifespan: Sequence[Callable[[], AbstractAsyncContextManager[None]]] = ()
    telemetry: Telemetry = Telemetry()


class WebSettings(Struct, frozen=True, kw_only=True):
    """`zone` and `currency` are the deployment's billing timezone and currency."""

    max_body_bytes: int = 1_048_576
    body_timeout_s: float = 10.0
    max_depth: int = 32
    max_values: int = 20_000
    batch_max: int = 100
    batch_concurrency: int = 16
    zone: ZoneInfo = ZoneInfo("UTC")
    currency: str = "USD"
