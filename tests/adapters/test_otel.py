"""What the `OTEL_*` variables mean, which plain traces are kept, and spans over gRPC."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from gateway.adapters.otel import Bounded, Exports, Share, read, resource_of
from gateway.core.problems import InvalidConfig

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans over gRPC."""

    def __init__(self) -> None:
        self.received: Queue[ExportTraceServiceRequest] = Queue()

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802
        self.received.put(request)
        return ExportTraceServiceResponse()


@contextmanager
def receiving() -> Iterator[tuple[str, Receiver]]:
    """A gRPC server on a free port."""
    server, receiver = grpc.server(ThreadPoolExecutor(1)), Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", receiver
    finally:
        server.stop(None)


def test_spans_go_over_grpc_with_the_ids_that_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTLP by gRPC; what waits is sent before the exporter closes."""
    counted: list[tuple[int, bool]] = []
    with receiving() as (endpoint, receiver):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        exports = Exports("grpc", resource_of("one"), lambda spans, lost: counted.append((spans, lost)))
        exports.ids.trace_id, exports.ids.span_id = 0xABC, 0xDEF
        exports.tracer.start_span("kept").end()
        exports.close()
        (resource,) = receiver.received.get(timeout=60).resource_spans
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex(), span.span_id.hex()) == ("kept", f"{0xABC:032x}", f"{0xDEF:016x}")
    assert counted == [(1, False)]


def test_an_exporter_that_is_down_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing gives up after a few seconds, and says how many spans were lost."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    counted: list[tuple[int, bool]] = []
    exports = Exports("http/protobuf", resource_of("one"), lambda spans, lost: counted.append((spans, lost)))
    for number in range(1, 6000):
        exports.ids.trace_id = exports.ids.span_id = number
        exports.tracer.start_span("lost").end()
    start_s = time.monotonic()
    exports.close()
    assert time.monotonic() - start_s < 60
    assert all(lost for _, lost in counted)


def test_nothing_is_exported_unless_it_was_asked_for() -> None:
    """An endpoint, or `otlp` by name, is the asking; `none` and OTEL_SDK_DISABLED take it back."""
    assert (read({}).traces, read({}).metrics) == (None, None)
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert (read(endpoint).traces, read(endpoint).metrics) == ("http/protobuf", "http/protobuf")
    assert read({**endpoint, "OTEL_METRICS_EXPORTER": "none"}).metrics is None
    assert read({**endpoint, "OTEL_SDK_DISABLED": "true"}).traces is None
    assert read({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).traces == "grpc"
    assert read({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}).metrics is None


def test_all_that_is_wrong_is_said_at_once() -> None:
    """A misspelt exporter, protocol, sampler and share are four problems."""
    with pytest.raises(InvalidConfig) as raised:
        read(
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_METRICS_EXPORTER": "zipkin",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
                "OTEL_TRACES_SAMPLER": "sometimes",
                "OTEL_TRACES_SAMPLER_ARG": "half",
            }
        )
    assert {problem.path for problem in raised.value.problems} == {
        "OTEL_METRICS_EXPORTER",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_TRACES_SAMPLER",
        "OTEL_TRACES_SAMPLER_ARG",
    }


def test_without_traces_the_callers_decision_is_passed_on() -> None:
    """What is not traced here begins no trace, and ends none."""
    sampled = read({}).sampled
    assert (sampled(TRACE, True), sampled(TRACE, False), sampled(TRACE, None)) == (True, False, False)


def test_so_many_plain_traces_a_second() -> None:
    """The first of a second are kept, and never one that the caller's side drops."""
    now_s = 0.0
    bounded = Bounded(3, lambda: now_s)
    assert not bounded(TRACE, False)
    assert [bounded(TRACE, None) for _ in range(5)] == [True, True, True, False, False]
    now_s = 1.0
    assert [bounded(TRACE, True) for _ in range(4)] == [True, True, True, False]


def test_a_share_is_the_same_in_every_process() -> None:
    """It depends on the trace id alone; with `parentbased_` the caller's decision comes first."""
    half = Share(0.5, follows=False)
    assert (half("0" * 16 + "7" + "f" * 15, None), half("0" * 16 + "8" + "0" * 15, None)) == (True, False)
    assert not half("0" * 16 + "f" * 16, True)
    follows = read(
        {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0",
        }
    ).sampled
    assert (follows(TRACE, True), follows(TRACE, False), follows(TRACE, None)) == (True, False, False)
