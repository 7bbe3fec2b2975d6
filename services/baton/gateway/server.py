"""The HTTP server: one listening socket, served inside the service's own event loop until cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from functools import partial
from typing import cast

import structlog
import uvicorn
from starlette.types import ASGIApp

from baton.core.errors import ConfigError
from baton.gateway.http.https import Https
from baton.gateway.http.protocol import BoundedProtocol, ConnectionLimits
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

_LIMITS = ConnectionLimits()
_IDLE_CONNECTION_S = 75  # longer than clients keep pooled connections, so that they, not we, close them


def listen(host: str, port: int, *, unread_s: float = 60.0, shared: bool = False) -> socket.socket:
    """A listening socket, so that a busy port is known before anything else is started. Raises ConfigError.

    `unread_s`: connections whose client takes nothing of its answer for so long are ended by the kernel. `shared`:
    other processes may listen on the same port; the kernel spreads connections over them.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048, reuse_port=shared)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_s * 1000))  # connections inherit it
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use by another program; "
                f"choose another with --port or BATON_GATEWAY_PORT, or 0 for any free one"
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    drain_s: float,
    limits: ConnectionLimits = _LIMITS,
    https: Https | None = None,
) -> None:
    """Answer HTTP, or HTTPS, on `listener`, which is closed at the end, until cancelled.

    Then no new connections are taken, and running requests get `drain_s` seconds before they are cut off.
    """
    tls = None if https is None else https.context()
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(BoundedProtocol, limits=limits)),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=_IDLE_CONNECTION_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        reset_contextvars=True,  # a request's context is not that of the request before it on the connection
        ssl_context_factory=None if tls is None else lambda config, default: tls,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = None if https is None or tls is None else asyncio.create_task(https.keep_current(tls))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await _finish(serving)
        raise
    finally:
        listener.close()
        await cancel_and_wait(watching)


async def _finish(serving: asyncio.Task[None]) -> None:
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:  # told twice: no more waiting
        await cancel_and_wait(serving)


class _Server(uvicorn.Server):
    """Signals belong to the service, not to the HTTP server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
