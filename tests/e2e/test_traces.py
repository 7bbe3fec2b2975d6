"""One request, traced through every service: who did what, below whom, and that nothing is recorded unasked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from in_process import MODEL, Cluster, cluster, until
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from baton.runtime import tracing
from baton.runtime.tracing_otel import OtelTracer
from baton.testing.checkpoints import make_checkpoint

TRACE, CLIENT_SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{CLIENT_SPAN:016x}-01"
# Every span, and the one that it lies below; the client's is None.
TREE = {
    "gateway.request": None,
    "gateway.understand": "gateway.request",
    "gateway.generate": "gateway.request",
    "router.request": "gateway.generate",
    "router.place": "router.request",
    "router.attempt": "router.request",
    "worker.queue": "router.attempt",
    "worker.prefill": "router.attempt",
    "worker.reserve": "router.attempt",
    "worker.handoff": "router.attempt",
    "worker.decode": "router.attempt",
    "agent.fetch": "worker.handoff",
    "agent.offer": "router.attempt",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ckpt") / "llama", "llama", layers=2, hidden=32, heads=2)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.0)))  # only what the client wants traced
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracing.install(OtelTracer(provider.get_tracer("test")))
    yield memory
    tracing.install(None)


def prompt(tokens: int) -> list[int]:
    rng = random.Random(tokens)
    return [rng.randrange(10, 300) for _ in range(tokens)]


async def complete(running: Cluster, traceparent: str = "", **fields: object) -> httpx.Response:
    body = {"model": MODEL, "prompt": prompt(200), "max_tokens": 6, "ignore_eos": True, "temperature": 0, **fields}
    headers = {"traceparent": traceparent} if traceparent else {}
    async with httpx.AsyncClient(timeout=30) as http:
        return await http.post(f"{running.gateway_url}/v1/completions", json=body, headers=headers)


async def finished(exporter: InMemorySpanExporter, names: set[str]) -> list[ReadableSpan]:
    """All spans, once those with these names have ended: services end theirs a little after the answer."""

    async def are_there() -> bool:
        return names <= {span.name for span in exporter.get_finished_spans()}

    await until(are_there, f"spans {sorted(names)}")
    return list(exporter.get_finished_spans())


async def test_every_stage_of_a_request(checkpoint: Path, tmp_path: Path, exporter: InMemorySpanExporter) -> None:
    async with cluster(tmp_path, checkpoint, gateway=True, router={"local_extend_tokens": 0}) as running:
        assert (await complete(running, TRACEPARENT)).status_code == 200
        spans = await finished(exporter, set(TREE))
        assert all(span.context.trace_id == TRACE for span in spans)
        names = {span.context.span_id: span.name for span in spans}
        parents = {span.name: names.get(span.parent.span_id) for span in spans}
        assert {name: parents[name] for name in TREE} == TREE
        root = next(span for span in spans if span.name == "gateway.request")
        assert root.parent.span_id == CLIENT_SPAN
        assert (
            root.attributes["http.route"] == "/v1/completions" and root.attributes["http.response.status_code"] == 200
        )

        by_name = {span.name: span for span in spans}
        attempt, handoff = by_name["router.attempt"].attributes, by_name["worker.handoff"].attributes
        assert (attempt["baton.prefill_worker"], attempt["baton.decode_worker"]) == ("prefill-0", "decode-0")
        assert handoff["baton.handoff_bytes"] == by_name["agent.fetch"].attributes["baton.bytes"] > 0
        assert by_name["worker.prefill"].attributes["baton.worker"] == "prefill-0"
        assert by_name["worker.decode"].attributes["baton.tokens"] == 5  # the first one is prefill's
        assert by_name["gateway.generate"].attributes["baton.completion_tokens"] == 6
        assert all(span.status.is_ok or span.status.is_unset for span in spans)
        computing, queue = by_name["worker.prefill"], by_name["worker.queue"]
        assert queue.end_time == computing.start_time < computing.end_time
        # Stages come one after the other, however clocks are read.
        order = ["gateway.understand", "router.place", "worker.prefill", "worker.decode"]
        ends = [by_name[name].end_time for name in order]
        assert ends == sorted(ends)
        assert all(span.start_time >= root.start_time for span in spans)

        # A client that has decided not to be traced is not, and neither is one that does not care here.
        exporter.clear()
        assert (await complete(running, TRACEPARENT[:-2] + "00")).status_code == 200
        assert (await complete(running)).status_code == 200
        await running.quiet()
        assert exporter.get_finished_spans() == ()


async def test_a_failed_attempt_and_a_whole_one(
    checkpoint: Path, tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    async with cluster(tmp_path, checkpoint, prefill=0, decode=0, unified=1, gateway=True) as running:
        assert (await complete(running, TRACEPARENT, max_tokens=3)).status_code == 200
        wanted = {"worker.queue", "worker.prefill", "worker.decode", "router.request", "gateway.request"}
        spans = await finished(exporter, wanted)
        assert not {"worker.handoff", "agent.fetch", "worker.reserve"} & {span.name for span in spans}
        exporter.clear()
        refused = await complete(running, TRACEPARENT, prompt=prompt(5000))
        assert refused.status_code == 400
        (span,) = [span for span in await finished(exporter, {"gateway.request"}) if span.name == "gateway.request"]
        assert span.attributes["http.response.status_code"] == 400 and span.status.is_unset
