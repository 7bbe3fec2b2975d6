"""Server assembly: every Baton gRPC server has the standard health service, reflection and one error interceptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton.core.errors import BatonError, ConfigError
from baton.rpc import status
from baton.rpc.tls import Tls

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 64 << 20  # a prompt of 1 M token ids is about 3 MB; prompt logprobs are larger
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a busy port is an error, not a second listener
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # 60 s by default: a peer that is stopped would be noticed that late
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
]


class RpcServer:
    """One listening gRPC server.

    `register` maps a full service name (`baton.rpc.v1.Worker`) to a function that adds its servicer.
    Readiness is per service and for the server as a whole ("") and starts as NOT_SERVING. `tls`: not for Unix sockets.
    """

    def __init__(
        self,
        address: str,
        register: Sequence[tuple[str, Callable[[grpc.aio.Server], None]]],
        tls: Tls | None = None,
    ) -> None:
        self._server = grpc.aio.server(interceptors=[_ErrorInterceptor()], options=OPTIONS)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._names: list[str] = []
        for name, add in register:
            self.add(name, add)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            if tls is None or address.startswith("unix:"):
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, tls.server_credentials())
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        if self.port == 0 and not address.startswith("unix:"):
            raise ConfigError(f"cannot listen on {address}: the port is in use")

    def add(self, name: str, add_servicer: Callable[[grpc.aio.Server], None]) -> None:
        """Add a service after binding (its servicer may need the port) and before `start`."""
        self._names.append(name)
        add_servicer(self._server)

    async def start(self) -> None:
        reflection.enable_server_reflection([*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        await self.set_ready(False)
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ["", *self._names]:
            await self._health.set(name, state)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new calls, let running ones end for `grace_s` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


_HANDLERS: dict[tuple[bool, bool], tuple[Any, str]] = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}


class _ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns exceptions of handlers into status codes; logs those that are defects."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/baton."):
            return handler
        guard = _guard_stream if handler.response_streaming else _guard_unary
        kind, inner = _HANDLERS[handler.request_streaming, handler.response_streaming]
        wrapped = guard(getattr(handler, inner), details.method)
        return kind(wrapped, handler.request_deserializer, handler.response_serializer)


def _guard_unary(inner: Any, method: str) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await inner(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            _log_defect(method, error)
            await status.abort(context, error)

    return guarded


def _guard_stream(inner: Any, method: str) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async for item in inner(request, context):
                yield item
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception as error:
            _log_defect(method, error)
            await status.abort(context, error)

    return guarded


def _log_defect(method: str, error: Exception) -> None:
    if not isinstance(error, BatonError):
        log.error("rpc handler failed", method=method, exc_info=error)
