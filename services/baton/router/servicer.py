"""The Router gRPC service: validate, call the domain, map errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc

from baton.core.errors import BatonError, InvalidRequest
from baton.core.version import VERSION
from baton.router.fleet import Fleet
from baton.router.fleet_view import worker_messages
from baton.router.index import PrefixIndex
from baton.router.lifecycle import Lifecycle
from baton.router.outbox import Outbox, OutboxSink
from baton.router.placer import Placer
from baton.router.settings import RouterSettings
from baton.router.validation import submission
from baton.rpc.convert import error_from_pb, error_to_pb
from baton.rpc.v1 import router_pb2 as pb
from baton.rpc.v1 import router_pb2_grpc
from baton.runtime import tracing
from baton.runtime.lifecycle import cancel_and_wait


class RouterServicer(router_pb2_grpc.RouterServicer):
    """Streams in, requests and their events out. A caller that goes away cancels what came by its stream."""

    def __init__(
        self,
        settings: RouterSettings,
        lifecycle: Lifecycle,
        placer: Placer,
        fleet: Fleet,
        index: PrefixIndex,
        redis_connected: Callable[[], bool],
        unreachable: Callable[[], list[str]],
    ) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._placer = placer
        self._fleet = fleet
        self._index = index
        self._redis_connected = redis_connected
        self._unreachable = unreachable

    async def Stream(
        self, requests: AsyncIterator[pb.StreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateEvents]:
        outbox = Outbox(on_overflow=_cancel_this_call())
        await context.send_initial_metadata(())  # the caller knows now that the stream is open
        reader = asyncio.create_task(self._read(requests, outbox))
        try:
            while events := await outbox.take():
                yield pb.GenerateEvents(events=events)
        finally:
            # The call may be cancelled once more at any await: what must happen comes before.
            reader.cancel()
            self._cancel_all(outbox)
            await cancel_and_wait(reader)

    async def Generate(
        self, message: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateEvent]:
        outbox = Outbox(on_overflow=_cancel_this_call())
        if tracing.is_on() and not message.traceparent:
            message.traceparent = _traceparent(context)
        self._submit(message, outbox)
        outbox.close_when_done()
        try:
            while events := await outbox.take():
                for event in events:
                    if event.HasField("error"):
                        raise error_from_pb(event.error)
                    yield event
        finally:
            self._cancel_all(outbox)

    async def Complete(self, message: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> pb.GenerateResponse:
        answer = pb.GenerateResponse()
        async for event in self.Generate(message, context):
            answer.request_id = event.request_id
            if event.HasField("tokens"):
                answer.tokens.MergeFrom(event.tokens)
            else:
                answer.finished.CopyFrom(event.finished)
        return answer

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        answer = pb.ListModelsResponse()
        for name, revision in sorted(self._fleet.models.items()):
            limits = [state.info.token_limit for state in self._fleet.of_model(name)]
            answer.models.add(
                name=name,
                max_context_tokens=min(limits, default=0),
                revision=revision,
                ready=self._placer.can_place(name),
                tasks=sorted(self._fleet.tasks(name)),
            )
        return answer

    async def Fleet(self, request: pb.FleetRequest, context: grpc.aio.ServicerContext) -> pb.FleetResponse:
        return pb.FleetResponse(
            workers=worker_messages(self._fleet),
            redis_connected=self._redis_connected(),
            index_blocks=self._index.blocks,
            queued=self._lifecycle.queued,
            in_flight=self._lifecycle.in_flight,
            version=VERSION,
            unreachable=self._unreachable(),
        )

    async def _read(self, requests: AsyncIterator[pb.StreamRequest], outbox: Outbox) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    self._submit_on_stream(request.submit, outbox)
                case "cancel":
                    known = outbox.live.get(request.cancel.request_id)
                    if known is not None:
                        self._lifecycle.cancel(known)
        outbox.close_when_done()

    def _submit_on_stream(self, message: pb.GenerateRequest, outbox: Outbox) -> None:
        """Refusals are events of the request: the stream belongs to others too."""
        try:
            if not message.request_id:
                raise InvalidRequest("request_id is missing: on a stream the caller chooses it", param="request_id")
            self._submit(message, outbox)
        except BatonError as error:
            refusal = pb.GenerateEvent(
                request_id=message.request_id, attempt=message.first_attempt, error=error_to_pb(error)
            )
            outbox.put(refusal)

    def _submit(self, message: pb.GenerateRequest, outbox: Outbox) -> None:
        asked = submission(message, self._settings, self._fleet)
        if asked.request_id in outbox.live:
            raise InvalidRequest(f"request_id {asked.request_id!r} is in use", param="request_id")
        request = self._lifecycle.submit(asked, OutboxSink(outbox, asked.request_id))
        if not request.is_over:
            outbox.live[asked.request_id] = request

    def _cancel_all(self, outbox: Outbox) -> None:
        for request in list(outbox.live.values()):
            self._lifecycle.cancel(request)


def _traceparent(context: grpc.aio.ServicerContext) -> str:
    """What clients send as metadata whose messages are made by hand."""
    value = dict(context.invocation_metadata() or ()).get("traceparent", "")
    return value if isinstance(value, str) else ""


def _cancel_this_call() -> Callable[[], object]:
    """Ends the call that is being handled, also while it waits for its caller to read."""
    task = asyncio.current_task()
    assert task is not None, "handlers run in tasks"
    return task.cancel
