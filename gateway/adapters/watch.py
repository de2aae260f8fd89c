"""All that watches one process: metrics always, spans and pushed metrics where `OTEL_*` variables ask for them."""

import asyncio
import uuid
from collections.abc import Callable, Mapping

from opentelemetry.sdk.resources import Resource

from gateway.adapters.metrics import Metrics
from gateway.adapters.otel import Exports, OtelSettings, metric_exporter, read, resource_of
from gateway.adapters.readings import Look, ProcessState, Readings, Vitals
from gateway.core.clock import Clock
from gateway.core.task import Model
from gateway.core.telemetry import Observer, Sampler


class Watch:
    """Observers, and what shows their findings. `follow` until the end of the process, then `aclose`.

    `models` finds a declared model by its name; with `text`, spans carry input and output.
    """

    def __init__(
        self, environ: Mapping[str, str], clock: Clock, models: Callable[[str], Model | None], *, text: bool
    ) -> None:
        """Raises InvalidConfig for `OTEL_*` variables that make no sense."""
        self._otel: OtelSettings = read(environ)
        self._resource: Resource = resource_of(str(uuid.uuid4()))
        self.metrics = Metrics()
        self.observers: list[Observer] = [self.metrics]
        self._exports: Exports | None = None
        if self._otel.traces is not None:
            from gateway.adapters.spans import Spans

            self._exports = Exports(self._otel.traces, self._resource, self.metrics.exported)
            self.observers.append(Spans(self._exports.tracer, self._exports.ids, clock, models, text=text))

    @property
    def sampled(self) -> Sampler:
        """Which plain traces are kept."""
        return self._otel.sampled

    def looking_at(self, state: Callable[[], ProcessState], looks: Mapping[str, Look]) -> None:
        """What is looked up beside what is counted; to be said before anybody follows or renders."""
        self._vitals, self._readings = Vitals(self.metrics, state), Readings(looks)

    async def render(self) -> bytes:
        """Everything that is measured, in Prometheus's text format."""
        return await asyncio.to_thread(self.metrics.render, await self._readings())

    async def follow(self) -> None:
        """Measure, and push where that was asked for, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._vitals.follow())
            if self._otel.metrics is not None:
                group.create_task(self._push(self._otel.metrics))

    async def aclose(self) -> None:
        """Send the spans that wait, within a few seconds."""
        if self._exports is not None:
            await asyncio.to_thread(self._exports.close)

    async def _push(self, protocol: str) -> None:
        from gateway.adapters.otel_metrics import Pusher

        exporter = metric_exporter(protocol)
        pusher = Pusher(self.metrics, self._readings, exporter, self._resource, self._otel.metrics_every_s)
        try:
            await pusher.follow()
        finally:
            pusher.close()
