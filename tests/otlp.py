"""A collector: receives OTLP over HTTP on a real socket, and puts the spans together to trees."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from gateway.local.child import free_port


class Span:
    """A received span with its children, in the order in which they began."""

    def __init__(self, received: ProtoSpan) -> None:
        self.trace_id, self.id = received.trace_id.hex(), received.span_id.hex()
        self.parent_id = received.parent_span_id.hex()
        self.name, self.kind = received.name, ProtoSpan.SpanKind.Name(received.kind).removeprefix("SPAN_KIND_")
        self.start_ns, self.end_ns = received.start_time_unix_nano, received.end_time_unix_nano
        self.failed = received.status.code == Status.STATUS_CODE_ERROR
        self.attributes: dict[str, Any] = {each.key: _value(each.value) for each in received.attributes}
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in received.links]
        self.children: list[Span] = []

    @property
    def ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6

    def tree(self) -> Any:
        """Its name alone, or (name, trees of its children)."""
        return (self.name, [child.tree() for child in self.children]) if self.children else self.name


class Collector:
    """What was received so far. `refusing` answers 503 instead."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.spans: dict[str, list[Span]] = {}
        self.metrics: dict[str, Any] = {}
        self.resources: list[dict[str, Any]] = []
        self.bodies = b""
        self.refusing = False
        self._news = asyncio.Condition()

    async def root(self, trace_id: str) -> Span:
        """The tree of a trace, once its inference has come: it ends last, and is sent with or after the others."""
        return await self._until(lambda: self._root(trace_id))

    async def root_of_kind(self, kind: str) -> Span:
        """The tree of some inference of that kind."""
        trace_id = await self._until(lambda: self._trace_of_kind(kind))
        return await self.root(trace_id)

    async def metric(self, name: str) -> Any:
        """The data of a metric, once it has come."""
        return await self._until(lambda: self.metrics.get(name))

    async def _until(self, find: Callable[[], Any]) -> Any:
        async with asyncio.timeout(60), self._news:
            while (found := find()) is None:
                await self._news.wait()
            return found

    def _trace_of_kind(self, kind: str) -> str | None:
        found = (t for t, spans in self.spans.items() for s in spans if s.attributes.get("taskgate.kind") == kind)
        return next(found, None)

    def _root(self, trace_id: str) -> Span | None:
        spans = self.spans.get(trace_id, [])
        by_id = {span.id: span for span in spans}
        for span in spans:
            span.children = sorted((s for s in spans if s.parent_id == span.id), key=lambda s: s.start_ns)
        return next((s for s in spans if s.parent_id not in by_id and s.name.startswith("inference ")), None)

    async def receive_spans(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        body = await request.read()
        if self.refusing:
            return web.Response(status=503)
        async with self._news:
            self.bodies += body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append({each.key: _value(each.value) for each in resource.resource.attributes})
                for scope in resource.scope_spans:
                    for received in scope.spans:
                        span = Span(received)
                        self.spans.setdefault(span.trace_id, []).append(span)
            self._news.notify_all()
        return web.Response(content_type="application/x-protobuf")

    async def receive_metrics(self, request: web.Request) -> web.Response:
        """POST /v1/metrics."""
        async with self._news:
            for resource in ExportMetricsServiceRequest.FromString(await request.read()).resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics.update((metric.name, metric) for metric in scope.metrics)
            self._news.notify_all()
        return web.Response(content_type="application/x-protobuf")


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port."""
    port = free_port()
    collector = Collector(f"http://127.0.0.1:{port}")
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/traces", collector.receive_spans)
    app.router.add_post("/v1/metrics", collector.receive_metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield collector
    finally:
        await runner.cleanup()


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
