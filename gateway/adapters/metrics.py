"""The one door to prometheus_client: what is counted and timed, and how it is shown.

Worker processes of one replica write to files in the folder that PROMETHEUS_MULTIPROC_DIR names, which the parent sets
before it starts them; whichever of them is asked shows the sums. No label is a caller's to choose: tasks, stages and
models are declared, reasons and codes are the gateway's own words, and what is more than `MOST_SERIES` all the same is
counted as `other`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.core.drift import QualityDrifted
from gateway.core.errors import GatewayError
from gateway.core.inference import Answer, Attempt, Inference, Invocation, ModelCall
from gateway.core.loaded import LoadedTask
from gateway.core.telemetry import Reading
from gateway.core.thresholds import NearLimit

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
MOST_SERIES = 1000
OTHER = "other"

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_SLOW_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_NANO = 1e-9


class Series:
    """The children of a metric by their labels, found without prometheus_client's checks, and bounded in number."""

    def __init__(self, metric: Any, most: int = MOST_SERIES) -> None:
        self._metric, self._most = metric, most
        self._children: dict[tuple[str, ...], Any] = {}

    def __call__(self, *labels: str) -> Any:
        """The child with these labels."""
        child = self._children.get(labels)
        return child if child is not None else self._adopt(labels)

    @property
    def known(self) -> set[tuple[str, ...]]:
        """The combinations of labels so far."""
        return set(self._children)

    def _adopt(self, labels: tuple[str, ...]) -> Any:
        if len(self._children) >= self._most:
            labels = (OTHER,) * len(labels)
        child = self._children[labels] = self._metric.labels(*labels)
        return child


class Metrics:
    """An observer that counts. One per process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Invocations that ended, by the stage that decided.", "task", "stage", "outcome", "cache"
        )
        self._request_s = self._histogram("request_seconds", "From the first byte to the answer.", _SLOW_S, "task")
        self._overhead_s = self._histogram(
            "overhead_seconds", "The same without the time spent waiting for model servers.", _FAST_S, "task"
        )
        self._attempts = self._counter("attempts", "Stage runs.", "task", "stage", "outcome", "reason")
        self._stage_s = self._histogram("stage_seconds", "Duration of stage runs.", _SLOW_S, "task", "stage")
        self._label_mass = self._histogram(
            "label_mass", "Share of probability that a model put on the labels.", _SHARES, "task", "stage"
        )
        self._calls = self._counter("model_calls", "Requests to model servers.", "model", "replica", "outcome")
        self._upstream_s = self._histogram(
            "upstream_seconds", "Duration of requests to model servers.", _SLOW_S, "model"
        )
        self._tokens = self._counter("tokens", "Tokens of model calls.", "task", "model", "direction")
        self._cost = self._counter("cost", "Price of model calls. The ledger is exact.", "task", "model")
        self._problems = self._counter("problems", "Error answers.", "code")
        self._near = self._counter("quotas_near_limit", "Quotas used to four fifths, once a window.", "resource", "per")
        self._audits = self._counter("audit_samples", "Sampled runs, by what came of them.", "task", "outcome")
        self._drifts = self._counter("drifts", "Distributions that drifted, once a day each.", "task", "what")
        self._commit_s = self._histogram("ledger_commit_seconds", "Duration of the ledger's commits.", _FAST_S)
        self._spans = self._counter("spans", "Spans handed to the exporter.", "result")
        self._gauges: dict[str, Series] = {}

    def answered(self, task: LoadedTask, answer: Answer) -> None:
        """Count all of it; of what no caller asked for, only the model calls."""
        inference, decision = answer.inference, answer.inference.decision
        if inference.invocation.kind != "invoke":
            self._count_calls(task.name, inference)
            return
        cache = "replayed" if answer.replayed else inference.cache
        self._requests(task.name, decision.stage or "none", decision.status, cache).inc()
        if answer.replayed:
            return
        self._count_calls(task.name, inference)
        for attempt in inference.attempts:
            self._count_attempt(task.name, attempt)
        if answer.laps:
            origin = inference.invocation.origin
            spent_s = answer.laps[-1].end_s - (answer.laps[0].start_s if origin is None else origin.began_s)
            self._request_s(task.name).observe(spent_s)
            self._overhead_s(task.name).observe(max(0.0, spent_s - inference.upstream_ms / 1000))

    def refused(self, task: LoadedTask, invocation: Invocation, error: BaseException) -> None:
        """Count it by its code."""
        code = error.code if isinstance(error, GatewayError) else "internal"
        self._requests(task.name, "none", code, "off").inc()

    def problem(self, code: str) -> None:
        """An error was answered."""
        self._problems(code).inc()

    def near_limit(self, event: NearLimit) -> None:
        """A quota came near its limit."""
        self._near(event.resource, event.per).inc()

    def audited(self, task: str, outcome: str) -> None:
        """A run of the audit sample was looked at, or dropped."""
        self._audits(task, outcome).inc()

    def drifted(self, event: QualityDrifted) -> None:
        """Scores, or the share that goes to the LLM, are spread otherwise than they were."""
        self._drifts(event.task, event.what).inc()

    def committed(self, duration_s: float) -> None:
        """The ledger wrote a batch."""
        self._commit_s().observe(duration_s)

    def exported(self, spans: int, *, lost: bool) -> None:
        """The exporter took a batch of spans, or lost it. May be called from any thread."""
        self._spans("lost" if lost else "exported").inc(spans)

    def set(self, reading: Reading, across: str) -> None:
        """The state of this process; `across` says what stands for all workers: `livesum`, `livemax` or `livemin`.

        A combination of labels that was set before and is missing now is set to 0.
        """
        name, help, labels, values = reading
        if name not in self._gauges:
            gauge = Gauge(f"taskgate_{name}", help, labels, registry=self.registry, multiprocess_mode=across)  # type: ignore[arg-type]
            self._gauges[name] = Series(gauge) if labels else Series(_Alone(gauge))
        series = self._gauges[name]
        for missing in series.known - {key for key, _ in values}:
            series(*missing).set(0)
        for key, value in values:
            series(*key).set(value)

    def collected(self) -> Iterator[Metric]:
        """What this process alone has measured."""
        yield from self.registry.collect()

    def render(self, readings: Sequence[Reading]) -> bytes:
        """All worker processes and `readings`, in Prometheus's text format. Reads files: not for the event loop."""
        registry = CollectorRegistry()
        if FOLDER_VARIABLE in os.environ:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry.register(self.registry)
        registry.register(_Read(readings))
        return generate_latest(registry)

    def _count_attempt(self, task: str, attempt: Attempt) -> None:
        stage = attempt.stage
        self._attempts(task, stage, attempt.outcome, attempt.reason or "none").inc()
        self._stage_s(task, stage).observe(attempt.duration_ms / 1000)
        if attempt.label_mass is not None:
            self._label_mass(task, stage).observe(attempt.label_mass)

    def _count_calls(self, task: str, inference: Inference) -> None:
        for attempt in inference.attempts:
            for call in attempt.calls:
                self._count_call(task, call)

    def _count_call(self, task: str, call: ModelCall) -> None:
        self._calls(call.model, host_of(call.replica), call.outcome).inc()
        if call.duration_ms:
            self._upstream_s(call.model).observe(call.duration_ms / 1000)
        if (usage := call.usage).input_tokens or usage.output_tokens:
            self._tokens(task, call.model, "input").inc(usage.input_tokens)
            self._tokens(task, call.model, "output").inc(usage.output_tokens)
            self._cost(task, call.model).inc(usage.cost_nano * _NANO)

    def _counter(self, name: str, help: str, *labels: str) -> Series:
        return Series(Counter(f"taskgate_{name}", help, labels, registry=self.registry))

    def _histogram(self, name: str, help: str, buckets: Sequence[float], *labels: str) -> Series:
        histogram = Histogram(f"taskgate_{name}", help, labels, registry=self.registry, buckets=buckets)
        return Series(histogram if labels else _Alone(histogram))


class _Alone:
    """A metric without labels, which is its own only child."""

    def __init__(self, metric: Any) -> None:
        self.labels: Callable[[], Any] = lambda: metric


class _Read:
    """Readings as a collector."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """One family per reading, at most MOST_SERIES values each."""
        return families(self._readings)


@lru_cache(maxsize=MOST_SERIES)
def host_of(url: str) -> str:
    """Host and port of a replica, without what else a URL can hold."""
    return urlsplit(url).netloc.rpartition("@")[2]


def families(readings: Sequence[Reading]) -> Iterator[Metric]:
    """Readings as prometheus_client has them."""
    for reading in readings:
        family = GaugeMetricFamily(f"taskgate_{reading.name}", reading.help, labels=reading.labels)
        for labels, value in reading.values[:MOST_SERIES]:
            family.add_metric(labels, value)
        yield family
