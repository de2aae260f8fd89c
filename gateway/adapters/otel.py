"""The one door to OpenTelemetry's SDK: what the standard `OTEL_*` variables say, and the exporters that follow.

Nothing is exported, and next to nothing is spent, unless a variable names an exporter or an endpoint. An exporter that
is down loses spans, which are counted, and nothing else: the queue is bounded, and its complaints are a line a minute.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Thread
from typing import Any, Literal

import structlog
from msgspec import Struct
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

from gateway import __version__
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.telemetry import Sampler

log = structlog.get_logger()

Signal = Literal["traces", "metrics"]

TRACES_PER_S = 20
"""How many plain traces a process keeps each second, where OTEL_TRACES_SAMPLER says nothing."""
_PATIENCE_S = 3.0
_QUIET_S = 60.0


class OtelSettings(Struct, frozen=True, kw_only=True):
    """What the environment asks for: the protocol of each signal that is exported, and which plain traces are kept."""

    traces: str | None = None
    metrics: str | None = None
    sampled: Sampler = lambda _, parent: parent is True
    metrics_every_s: float = 60.0


def read(environ: Mapping[str, str]) -> OtelSettings:
    """Raises InvalidConfig with every problem."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return OtelSettings()
    problems: list[Problem] = []
    traces, metrics = (_protocol(environ, signal, problems) for signal in ("traces", "metrics"))
    sampled = _sampler(environ, problems) if traces else OtelSettings().sampled
    every_ms = _number(environ, "OTEL_METRIC_EXPORT_INTERVAL", 60_000.0, problems)
    if problems:
        raise InvalidConfig(problems)
    return OtelSettings(traces=traces, metrics=metrics, sampled=sampled, metrics_every_s=every_ms / 1000)


class Bounded:
    """Keeps so many traces a second, however many there are; never one that the caller's side drops."""

    def __init__(self, per_s: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._now = per_s, now
        self._left, self._at_s = float(per_s), now()

    def __call__(self, trace_id: str, parent: bool | None) -> bool:
        """Whether this one is kept."""
        if parent is False:
            return False
        now_s = self._now()
        self._left = min(float(self._per_s), self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Share:
    """Keeps the same share of trace ids in every process; `follows` the caller's side where that has decided."""

    def __init__(self, share: float, *, follows: bool) -> None:
        self._below, self._follows = round(share * 2**64), follows

    def __call__(self, trace_id: str, parent: bool | None) -> bool:
        """Whether this one is kept."""
        if self._follows and parent is not None:
            return parent
        return int(trace_id[16:], 16) < self._below


class RecordIds(IdGenerator):
    """Gives out the ids that it was told: spans take theirs from the ledger's rows."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 0

    def generate_span_id(self) -> int:
        """As told."""
        return self.span_id

    def generate_trace_id(self) -> int:
        """As told."""
        return self.trace_id


class Exports:
    """A tracer whose spans are sent in batches by a thread. `exported` hears (number of spans, lost=…) of each."""

    def __init__(self, protocol: str, resource: Resource, exported: Callable[..., None]) -> None:
        _quieten()
        self.ids = RecordIds()
        self._exporter = _Counted(_span_exporter(protocol), exported)
        # Whether a trace is kept was decided before its spans are made.
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self.ids)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    @property
    def tracer(self) -> Tracer:
        """What makes spans."""
        return self._provider.get_tracer("taskgate", __version__)

    def close(self) -> None:
        """Send what waits, within three seconds. Blocks."""
        ending = Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_PATIENCE_S)
        if ending.is_alive():
            self._exporter.shutdown()


def resource_of(instance: str) -> Resource:
    """Who speaks: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    known = Resource.create({"service.version": __version__, "service.instance.id": instance})
    named = not str(known.attributes.get("service.name", "unknown_service")).startswith("unknown_service")
    return known if named else known.merge(Resource({"service.name": "taskgate"}))


def metric_exporter(protocol: str) -> MetricExporter:
    """Where metrics are pushed to."""
    _quieten()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

    return Http()


def _span_exporter(protocol: str) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()


class _Counted(SpanExporter):
    """An exporter whose successes and failures are counted."""

    def __init__(self, exporter: SpanExporter, exported: Callable[..., None]) -> None:
        self._exporter, self._exported = exporter, exported

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; it is lost where that fails."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._exported(len(spans), lost=result is not SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()


class _Seldom(logging.Handler):
    """The SDK's complaints as log lines of ours: one a minute, without its details, which name endpoints."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._until_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, unless something was said within the last minute."""
        if (now_s := time.monotonic()) >= self._until_s:
            self._until_s = now_s + _QUIET_S
            log.warning("telemetry_not_exported", by=record.name)


def _quieten() -> None:
    logger = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Seldom) for handler in logger.handlers):
        logger.addHandler(_Seldom())
        logger.propagate = False


def _protocol(environ: Mapping[str, str], signal: Signal, problems: list[Problem]) -> str | None:
    """The protocol that a signal is exported by; None where nobody asked for it."""
    name = f"OTEL_{signal.upper()}_EXPORTER"
    asked = any(environ.get(f"OTEL_EXPORTER_OTLP{of}ENDPOINT") for of in ("_", f"_{signal.upper()}_"))
    exporter = environ.get(name) or ("otlp" if asked else "none")
    if exporter == "none":
        return None
    if exporter != "otlp":
        problems.append(Problem("environment", name, f"`{exporter}` is not supported", "`otlp` or `none`"))
        return None
    variable = next(
        (v for v in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") if environ.get(v)),
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    )
    protocol = environ.get(variable) or "http/protobuf"
    if protocol not in ("grpc", "http/protobuf"):
        problems.append(Problem("environment", variable, f"`{protocol}` is not supported", "`grpc` or `http/protobuf`"))
    return protocol


def _sampler(environ: Mapping[str, str], problems: list[Problem]) -> Sampler:
    name = environ.get("OTEL_TRACES_SAMPLER")
    if not name:
        return Bounded(TRACES_PER_S)
    follows, kind = name.startswith("parentbased_"), name.removeprefix("parentbased_")
    fixed = {"always_on": 1.0, "always_off": 0.0}
    if kind in fixed:
        return Share(fixed[kind], follows=follows)
    if kind != "traceidratio":
        hint = "always_on, always_off or traceidratio, each also with parentbased_ before it"
        problems.append(Problem("environment", "OTEL_TRACES_SAMPLER", f"`{name}` is no sampler", hint))
    share = _number(environ, "OTEL_TRACES_SAMPLER_ARG", 1.0, problems)
    if not 0 <= share <= 1:
        problems.append(Problem("environment", "OTEL_TRACES_SAMPLER_ARG", "the share is not between 0 and 1"))
    return Share(share, follows=follows)


def _number(environ: Mapping[str, str], name: str, default: float, problems: list[Problem]) -> float:
    text: Any = environ.get(name) or default
    try:
        return float(text)
    except ValueError:
        problems.append(Problem("environment", name, "this is no number"))
        return default
