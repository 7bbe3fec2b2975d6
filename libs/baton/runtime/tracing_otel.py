"""Traces through OpenTelemetry's SDK: the one module that knows it. Comes with the extra `otel`."""

from __future__ import annotations

import re

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from baton.core.version import VERSION
from baton.runtime.tracing import Attributes, Span

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_EXPORT_S = 2.0  # a collector that does not answer must not keep a process from ending
_NOTHING: Attributes = {}


class OtelTracer:
    """Implements `baton.runtime.tracing.Tracer` on a tracer of the SDK."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start(self, name: str, parent: str, attributes: Attributes, *, is_entry: bool, at: float | None = None) -> Span:
        context = trace.set_span_in_context(NonRecordingSpan(_context(parent)))
        kind = SpanKind.SERVER if is_entry else SpanKind.INTERNAL
        return _OtelSpan(self._tracer.start_span(name, context, kind, attributes, start_time=_ns(at)))


class _OtelSpan:
    """One span of the SDK. One that is not sampled still hands its context on, so that nothing below it is either."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def __bool__(self) -> bool:
        return self._span.is_recording()

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes = _NOTHING, at: float | None = None) -> None:
        self._span.add_event(name, attributes, _ns(at))

    def end(self, error: str = "", at: float | None = None) -> None:
        if not self._span.is_recording():
            return
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(_ns(at))


def provider(service: str, endpoint: str, ratio: float) -> TracerProvider:
    """Spans of `service` to the OTLP/HTTP collector at `endpoint`. Of requests whose caller has not decided whether
    they are traced, the share `ratio` is. A thread of the SDK sends; what cannot be sent is dropped."""
    resource = Resource.create({"service.name": f"baton-{service}", "service.version": VERSION})
    made = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_S)
    made.add_span_processor(BatchSpanProcessor(exporter, export_timeout_millis=_EXPORT_S * 1000))
    return made


def _context(parent: str) -> SpanContext:
    """Of a traceparent; one that is malformed counts as none, as the specification wants it."""
    match = _PARENT.fullmatch(parent)
    if match is None:
        return trace.INVALID_SPAN_CONTEXT
    trace_id, span_id, flags = (int(part, 16) for part in match.groups()[:3])
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)
