"""Spans of the router: attempts that fail, requests that never get one, callers that send metadata."""

from __future__ import annotations

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from router_system import running, until

from baton.client import GenerateRequest, SamplingParams
from baton.core.errors import DeadlineExceeded
from baton.rpc.v1 import common_pb2, router_pb2, router_pb2_grpc

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PROMPT = list(range(10, 200))


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def test_every_attempt_is_a_span(exporter: InMemorySpanExporter) -> None:
    async with running("pdd", worker={"step_s": 0.002}, local_extend_tokens=0) as system:
        request = GenerateRequest("toy", PROMPT, SamplingParams(max_tokens=40), traceparent=PARENT)
        killed = ""
        async for event in system.client.generate(request):
            if not killed and getattr(event, "token_ids", None):
                busy = [name for name in ("d0", "d1") if system[name].engine.running]
                if busy:
                    killed = busy[0]
                    await system[killed].kill()
        assert killed
        await until(lambda: bool(named(exporter, "router.request")))
        first, second = sorted(named(exporter, "router.attempt"), key=lambda span: span.attributes["baton.attempt"])
        assert first.attributes["baton.decode_worker"] == killed and "worker_lost" in first.status.description
        assert second.attributes["baton.decode_worker"] != killed and second.status.is_unset
        assert len(named(exporter, "router.place")) == 2
        (whole,) = named(exporter, "router.request")
        assert whole.attributes["baton.outcome"] == "length" and whole.attributes["baton.completion_tokens"] == 40
        assert first.parent.span_id == second.parent.span_id == whole.context.span_id


async def test_a_request_that_is_never_placed(exporter: InMemorySpanExporter) -> None:
    async with running("p") as system:  # nobody decodes
        request = GenerateRequest("toy", PROMPT, SamplingParams(max_tokens=9), deadline_s=0.2, traceparent=PARENT)
        with pytest.raises(DeadlineExceeded):
            await system.client.complete(request)
        await until(lambda: bool(named(exporter, "router.request")))
        (whole,) = named(exporter, "router.request")
        assert whole.attributes["baton.outcome"] == "deadline_exceeded" and not whole.status.is_ok
        assert named(exporter, "router.attempt") == [] and len(named(exporter, "router.place")) == 1


async def test_a_grpc_clients_metadata(exporter: InMemorySpanExporter) -> None:
    async with running("u") as system, grpc.aio.insecure_channel(system.routers[0].address) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        message = router_pb2.GenerateRequest(
            model="toy", prompt_token_ids=[5, 6], sampling=common_pb2.Sampling(max_tokens=2, top_p=1)
        )
        await stub.Complete(message, metadata=(("traceparent", PARENT),))
        await stub.Complete(message)
        with_parent, without = named(exporter, "router.request")
        assert f"{with_parent.parent.span_id:016x}" == PARENT.split("-")[2]
        assert without.parent is None and without.context.trace_id != with_parent.context.trace_id
