"""Metrics by OTLP: what this process has measured, in OpenTelemetry's shapes, pushed now and then.

Each worker process speaks for itself, as an instance of its own; whoever receives it adds them up.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import structlog
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtelMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric

from gateway import __version__
from gateway.adapters.metrics import Metrics, families
from gateway.core.telemetry import Reading

log = structlog.get_logger()

_SCOPE = InstrumentationScope("taskgate", __version__)
_Labels = tuple[tuple[str, str], ...]


class Pusher:
    """Sends `metrics` and what `read` returns to an exporter, every so often."""

    def __init__(
        self,
        metrics: Metrics,
        read: Callable[[], Awaitable[Sequence[Reading]]],
        exporter: MetricExporter,
        resource: Resource,
        every_s: float,
    ) -> None:
        self._metrics, self._read, self._exporter = metrics, read, exporter
        self._resource, self._every_s = resource, every_s
        self._start_ns = time.time_ns()

    async def follow(self) -> None:
        """Push until cancelled. What cannot be sent is sent with the next: values are totals."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.push()

    async def push(self) -> None:
        """Send everything once."""
        measured = chain(self._metrics.collected(), families(await self._read()))
        data = metrics_data(measured, self._resource, self._start_ns, time.time_ns())
        if await asyncio.to_thread(self._exporter.export, data) is not MetricExportResult.SUCCESS:
            log.warning("metrics_not_exported")

    def close(self) -> None:
        """Stop sending, also what is being sent."""
        self._exporter.shutdown(timeout_millis=0)


def metrics_data(measured: Iterable[Metric], resource: Resource, start_ns: int, now_ns: int) -> MetricsData:
    """Prometheus's families as OpenTelemetry's metrics, with totals since `start_ns`."""
    metrics = [metric for family in measured if (metric := _metric(family, start_ns, now_ns)) is not None]
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(_SCOPE, metrics, "")], "")])


def _metric(family: Metric, start_ns: int, now_ns: int) -> OtelMetric | None:
    if not family.samples:
        return None
    data: Sum | Gauge | Histogram
    if family.type == "histogram":
        data = Histogram(list(_histograms(family, start_ns, now_ns)), AggregationTemporality.CUMULATIVE)
    elif family.type == "counter":
        points = list(_numbers(family, f"{family.name}_total", start_ns, now_ns))
        data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
    else:
        data = Gauge(list(_numbers(family, family.name, None, now_ns)))
    return OtelMetric(family.name, family.documentation, "s" if family.name.endswith("_seconds") else "", data)


def _numbers(family: Metric, name: str, start_ns: int | None, now_ns: int) -> Iterator[NumberDataPoint]:
    for sample in family.samples:
        if sample.name == name:
            yield NumberDataPoint(sample.labels, start_ns or 0, now_ns, sample.value)


def _histograms(family: Metric, start_ns: int, now_ns: int) -> Iterator[HistogramDataPoint]:
    bounds: dict[_Labels, dict[float, float]] = {}
    sums: dict[_Labels, float] = {}
    for sample in family.samples:
        labels = _without_bound(sample.labels)
        if sample.name.endswith("_bucket"):
            bounds.setdefault(labels, {})[float(sample.labels["le"])] = sample.value
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    for labels, below in bounds.items():
        edges = sorted(below)
        totals = [round(below[edge]) for edge in edges]
        counts = [total - before for total, before in zip(totals, [0, *totals[:-1]], strict=True)]
        yield HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=totals[-1],
            sum=sums.get(labels, 0.0),
            bucket_counts=counts,
            explicit_bounds=edges[:-1],
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
        )


def _without_bound(labels: Mapping[str, str]) -> _Labels:
    return tuple((name, value) for name, value in labels.items() if name != "le")
