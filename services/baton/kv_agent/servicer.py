"""The KvAgent gRPC service: one `Handoffs` stream per reading agent, and what happened when, for those who ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import structlog

from baton.core.errors import InvalidRequest
from baton.kv_agent.agent import KvAgent
from baton.kv_agent.source import ReaderStream, Source
from baton.rpc.v1 import kv_pb2 as pb
from baton.rpc.v1 import kv_pb2_grpc
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

SERVICE = "baton.rpc.v1.KvAgent"


class KvAgentServicer(kv_pb2_grpc.KvAgentServicer):
    """A stream that breaks ends all handoffs that were opened by it."""

    def __init__(self, agent: KvAgent) -> None:
        self._agent = agent

    async def Handoffs(
        self, requests: AsyncIterator[pb.ReaderMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SourceMessage]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("the first message of a Handoffs stream must be ReaderHello")
        source, stream, answer = self._agent.open_stream(first.hello)
        log.info("reader connected", reader=stream.agent_id)
        receiving = asyncio.create_task(self._receive(requests, source, stream))
        try:
            yield pb.SourceMessage(hello=answer)
            while (message := await stream.next_message()) is not None:
                yield message
        finally:
            source.disconnect(stream)
            await cancel_and_wait(receiving)
            log.info("reader disconnected", reader=stream.agent_id)

    async def Timelines(self, request: pb.TimelinesRequest, context: grpc.aio.ServicerContext) -> pb.TimelinesReply:
        return self._agent.timelines(request.request_id)

    async def _receive(self, requests: AsyncIterator[pb.ReaderMessage], source: Source, stream: ReaderStream) -> None:
        try:
            async for message in requests:
                source.on_reader(stream, message)
        finally:
            stream.close()
