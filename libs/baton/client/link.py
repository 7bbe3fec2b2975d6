"""One connection to one router: a multiplexed `Stream` that carries all requests sent there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.core.errors import ConfigError
from baton.rpc.channel import open_channel
from baton.rpc.tls import Tls
from baton.rpc.tls_probe import tls_problem
from baton.rpc.v1 import router_pb2 as pb
from baton.rpc.v1 import router_pb2_grpc
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

_SERVICE = "baton.rpc.v1.Router"
_RECONNECT_S = 0.05
_CONNECT_S = 3.0  # then it is asked what is wrong
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs

Inbox: TypeAlias = "asyncio.Queue[pb.GenerateEvent | None]"


class RouterLink:
    """Keeps a stream to `address` open, and hands its events to the requests they belong to.

    An inbox gets None when the stream breaks. `on_change` is called when `connected` or `serving` has changed.
    `problem`: what is wrong with TLS, if that is why it does not connect.
    """

    def __init__(self, address: str, on_change: Callable[[], None], tls: Tls | None = None) -> None:
        self.address = address
        self.problem = ""
        self._tls = tls
        self._open()
        self.connected = False
        self.serving = False  # False while the router drains: new requests go elsewhere if they can
        self._on_change = on_change
        self._inboxes: dict[str, Inbox] = {}
        self._outgoing: asyncio.Queue[pb.StreamRequest | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    @property
    def in_flight(self) -> int:
        return len(self._inboxes)

    async def close(self) -> None:
        await cancel_and_wait(self._task)
        await self.channel.close(None)

    @contextmanager
    def submit(self, message: pb.GenerateRequest) -> Iterator[Inbox]:
        """Send a request; its events come to the inbox. Leaving the context before the last event cancels it."""
        inbox: Inbox = asyncio.Queue()
        self._inboxes[message.request_id] = inbox
        outgoing = self._outgoing
        outgoing.put_nowait(pb.StreamRequest(submit=message))
        try:
            yield inbox
        finally:
            if self._inboxes.get(message.request_id) is inbox:
                del self._inboxes[message.request_id]
                cancel = pb.CancelRequest(request_id=message.request_id)
                outgoing.put_nowait(pb.StreamRequest(cancel=cancel))

    def _open(self) -> None:
        self.channel = open_channel(self.address, self._tls)
        self.stub = router_pb2_grpc.RouterStub(self.channel)

    async def _run(self) -> None:
        while True:
            try:
                await self._connection()
            except grpc.aio.AioRpcError as error:
                log.debug("router connection lost", address=self.address, reason=error.details())
            except TimeoutError:
                await self._look_at_tls()
            await asyncio.sleep(_RECONNECT_S)

    async def _look_at_tls(self) -> None:
        """It does not connect: say why if TLS is the reason, and try with what the files hold now."""
        problem = await tls_problem(self.address, self._tls)
        if problem and problem != self.problem:
            log.warning("router not reachable", address=self.address, reason=problem)
        self.problem = problem
        if self._tls is not None:
            with suppress(ConfigError):  # half-written files: the next time
                await self.channel.close(None)
                self._open()

    async def _connection(self) -> None:
        """One stream, from its opening (waited for) to its end."""
        self._outgoing = asyncio.Queue()
        call = self.stub.Stream(self._requests(self._outgoing), wait_for_ready=True)
        watch: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                await call.wait_for_connection()
            self.problem = ""
            self.connected = self.serving = True
            self._on_change()
            watch = asyncio.create_task(self._watch_health())
            while (events := await call.read()) is not _EOF:
                for event in events.events:
                    self._deliver(event)
        finally:
            call.cancel()
            self._outgoing.put_nowait(None)
            self._broken()
            await cancel_and_wait(watch)

    async def _requests(self, outgoing: asyncio.Queue[pb.StreamRequest | None]) -> AsyncIterator[pb.StreamRequest]:
        """What goes up the stream, until None: gRPC leaves an iterator alone when the other side ends the call."""
        while (request := await outgoing.get()) is not None:
            yield request

    async def _watch_health(self) -> None:
        """Hear of it when the router drains. A router that cannot tell counts as serving while its stream is open."""
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        try:
            async for answer in health_pb2_grpc.HealthStub(self.channel).Watch(request):
                self.serving = answer.status == health_pb2.HealthCheckResponse.SERVING
                self._on_change()
        except grpc.aio.AioRpcError as error:
            log.debug("health watch ended", address=self.address, reason=error.details())

    def _deliver(self, event: pb.GenerateEvent) -> None:
        inbox = self._inboxes.get(event.request_id)
        if inbox is None:
            return  # cancelled meanwhile
        if not event.HasField("tokens"):
            del self._inboxes[event.request_id]
        inbox.put_nowait(event)

    def _broken(self) -> None:
        self.connected = self.serving = False
        inboxes, self._inboxes = self._inboxes, {}
        for inbox in inboxes.values():
            inbox.put_nowait(None)
        self._on_change()
