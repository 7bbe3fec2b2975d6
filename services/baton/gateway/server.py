"""The HTTP server: one listening socket, served inside the service's own event loop until cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import structlog
import uvicorn
from starlette.types import ASGIApp

from baton.core.errors import ConfigError
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

_IDLE_CONNECTION_S = 75  # longer than clients keep pooled connections, so that they, not we, close them


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a busy port is known before anything else is started. Raises ConfigError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use by another program; "
                f"choose another with --port or BATON_GATEWAY_PORT, or 0 for any free one"
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


async def serve(app: ASGIApp, listener: socket.socket, drain_s: float) -> None:
    """Answer HTTP on `listener`, which is closed at the end, until cancelled.

    Then no new connections are taken, and running requests get `drain_s` seconds before they are cut off.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=_IDLE_CONNECTION_S,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await _finish(serving)
        raise
    finally:
        listener.close()


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
