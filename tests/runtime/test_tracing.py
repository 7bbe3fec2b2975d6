"""Spans: off they are nothing; on they carry W3C context, and reach a collector."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baton.runtime import tracing
from baton.runtime.tracing_otel import OtelTracer, provider

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_off_there_is_one_span_that_does_nothing() -> None:
    assert not tracing.is_on()
    span = tracing.enter("a", PARENT)
    assert span is tracing.start("b", PARENT) is tracing.current() is tracing.NO_SPAN
    span.set({"x": 1})
    span.event("y")
    span.end("failed")
    assert not span and span.traceparent == "" and span.trace_id == ""


def test_children_and_what_is_not_traced(exporter: InMemorySpanExporter) -> None:
    entry = tracing.enter("entry", PARENT, {"a": 1})
    child = tracing.start("child", entry.traceparent)
    assert tracing.start("nobody asked", "") is tracing.NO_SPAN
    child.event("seen", at=12.5)
    child.end("it broke", at=13.0)
    child.end()  # once is enough
    entry.end()
    done = {span.name: span for span in exporter.get_finished_spans()}
    assert set(done) == {"entry", "child"}
    assert done["child"].parent.span_id == done["entry"].context.span_id
    assert f"{done['entry'].parent.span_id:016x}" == PARENT.split("-")[2] and entry.trace_id == PARENT.split("-")[1]
    assert done["child"].end_time == 13_000_000_000 and done["child"].events[0].timestamp == 12_500_000_000
    assert done["child"].status.description == "it broke"


@pytest.mark.parametrize("broken", ["", "nonsense", PARENT[:-3], "ff" + PARENT[2:], PARENT.replace("4bf9", "ZZZZ")])
def test_a_malformed_context_begins_a_trace(exporter: InMemorySpanExporter, broken: str) -> None:
    span = tracing.enter("entry", broken)
    assert span and span.trace_id != PARENT.split("-")[1]


def test_a_caller_that_is_not_traced_stays_so(exporter: InMemorySpanExporter) -> None:
    entry = tracing.enter("entry", PARENT[:-2] + "00")
    assert not entry and entry.traceparent.endswith("-00") and entry.trace_id == PARENT.split("-")[1]
    tracing.start("below", entry.traceparent).end()
    entry.end("failed")
    assert exporter.get_finished_spans() == ()


def test_work_in_a_context(exporter: InMemorySpanExporter) -> None:
    span = tracing.enter("entry", "")
    with tracing.working_for(span):
        assert tracing.current() is span
    assert tracing.current() is tracing.NO_SPAN


def test_spans_reach_a_collector() -> None:
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        made = provider("router", f"http://127.0.0.1:{server.server_port}/", 1.0)
        OtelTracer(made.get_tracer("baton")).start("router.request", "", {"a": 1}, is_entry=True).end()
        made.shutdown()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (batch,) = ExportTraceServiceRequest.FromString(bodies[0]).resource_spans
    resource = {item.key: item.value.string_value for item in batch.resource.attributes}
    assert resource["service.name"] == "baton-router" and batch.scope_spans[0].spans[0].name == "router.request"
