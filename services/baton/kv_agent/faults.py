"""Messages that fail to order: the servicer of an agent that was started with `fault_injection`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from baton.kv.faults import Fault, FaultOrders
from baton.kv_agent.servicer import KvAgentServicer
from baton.rpc.v1 import kv_pb2 as pb
from baton.rpc.v1 import kv_pb2_grpc

M = TypeVar("M")

_REMEMBERED = 64  # messages of one stream that may be sent again


class FaultyServicer(kv_pb2_grpc.KvAgentServicer):
    """As `inner`, but messages of both directions are held up, doubled, repeated or spoiled as ordered."""

    def __init__(self, inner: KvAgentServicer, orders: FaultOrders) -> None:
        self._inner = inner
        self._orders = orders

    async def Handoffs(
        self, requests: AsyncIterator[pb.ReaderMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.SourceMessage]:
        async with aclosing(self._inner.Handoffs(self._through(requests), context)) as answers:  # type: ignore[type-var]
            async for message in self._through(answers):
                yield message

    async def Timelines(self, request: pb.TimelinesRequest, context: grpc.aio.ServicerContext) -> pb.TimelinesReply:
        return await self._inner.Timelines(request, context)

    async def _through(self, messages: AsyncIterator[M]) -> AsyncIterator[M]:
        seen: deque[M] = deque(maxlen=_REMEMBERED)
        async for message in messages:
            await self._orders.passage()
            self._spoil(message)
            yield message
            if self._orders.take(Fault.DUPLICATE) is not None:
                yield message
            seen.append(message)
            if len(seen) > 1 and self._orders.take(Fault.REPLAY) is not None:
                yield seen[len(seen) // 2]

    def _spoil(self, message: Any) -> None:
        is_record = isinstance(message, pb.SourceMessage) and message.WhichOneof("message") == "commit"
        if is_record and self._orders.take(Fault.RECORD) is not None:
            message.commit.tokens += 1
