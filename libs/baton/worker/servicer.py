"""The Worker gRPC service: streams in, dispatcher calls out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import structlog

from baton.core.errors import InvalidRequest
from baton.rpc.v1 import worker_pb2 as pb
from baton.rpc.v1 import worker_pb2_grpc
from baton.runtime.lifecycle import cancel_and_wait
from baton.worker.dispatcher import Dispatcher
from baton.worker.sessions import RouterSession

log = structlog.get_logger(__name__)


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """One `Work` stream per router: the first message names the router."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def Describe(
        self, request: pb.DescribeWorkerRequest, context: grpc.aio.ServicerContext
    ) -> pb.WorkerDescription:
        return self._dispatcher.description

    async def Work(
        self, requests: AsyncIterator[pb.WorkerRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WorkerEvent]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("the first message of a Work stream must be RouterHello")
        session = self._dispatcher.open_session(first.hello.router_id)
        log.info("router connected", router=session.router_id)
        reader = asyncio.create_task(self._read(requests, session))
        try:
            while (event := await session.next_event()) is not None:
                yield event
        finally:
            self._dispatcher.close_session(session)  # first: what follows may be cancelled
            log.info("router disconnected", router=session.router_id)
            await cancel_and_wait(reader)

    async def _read(self, requests: AsyncIterator[pb.WorkerRequest], session: RouterSession) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("message"):
                    case "assign":
                        self._dispatcher.assign(session, request.assign)
                    case "cancel":
                        self._dispatcher.cancel(request.cancel)
        finally:
            session.close()
