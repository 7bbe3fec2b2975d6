"""What holds for all tests: property tests draw the same examples every time; where spans go when a test looks at them.

`HYPOTHESIS_PROFILE=search pytest ...` looks further, with new examples at every run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baton.runtime import tracing
from baton.runtime.tracing_otel import OtelTracer

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """All spans of this process that end while the test runs."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracing.install(OtelTracer(provider.get_tracer("test")))
    yield memory
    tracing.install(None)
