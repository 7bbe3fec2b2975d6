"""Spans of agents: both sides of a handoff and of a pull, also of those that fail."""

from __future__ import annotations

from agent_harness import LAYOUT, attempts, expect_failed, expect_pulled, page_range, pair
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baton.core.attempt import Attempt
from baton.kv_agent import traces
from baton.kv_agent.traces import HandoffSpans

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_a_pull_on_both_sides(tmp_path, exporter):
    async with pair(tmp_path) as (source, reader):
        attempt = next(attempts)
        reader.pull(attempt, source, page_range(20, 3), traceparent=PARENT)
        await source.lend(attempt, page_range(40, 3))
        expect_pulled(await reader.answer(attempt), 3 * LAYOUT.page_size, 3)
        await source.answer(attempt)
        spans = by_name(exporter)
        assert set(spans) == {"agent.pull", "agent.lend"}
        assert spans["agent.lend"].parent.span_id == spans["agent.pull"].context.span_id
        assert spans["agent.pull"].attributes["baton.bytes"] > 0
        assert spans["agent.pull"].events[0].name == "first read"
        assert spans["agent.lend"].attributes["baton.outcome"] == "released"


async def test_a_pull_of_what_is_not_held(tmp_path, exporter):
    async with pair(tmp_path) as (source, reader):
        attempt = next(attempts)
        reader.pull(attempt, source, page_range(20, 2), traceparent=PARENT)
        await source.answer(attempt)
        source.abort(attempt)
        expect_failed(await reader.answer(attempt), "not_held")
        spans = by_name(exporter)
        assert not spans["agent.pull"].status.is_ok and "not_held" in spans["agent.pull"].status.description
        assert spans["agent.lend"].attributes["baton.outcome"] == "aborted"


def test_spans_whose_end_is_not_heard_of_make_room(exporter, monkeypatch):
    monkeypatch.setattr(traces, "MOST_OPEN", 2)
    spans = HandoffSpans()
    for n in range(4):
        spans.begin(f"span {n}", Attempt(f"r{n}", 0), PARENT, {})
    assert list(by_name(exporter)) == ["span 0", "span 1"]
    assert spans.traceparent(Attempt("r3", 0)) and not spans.traceparent(Attempt("r0", 0))
