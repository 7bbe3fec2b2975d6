"""HTTP on one connection, with bounds: how large a request's head may be, how long it may take, how many connections.

The server library bounds neither; what comes after the head is bounded by `body` and `stream`. A client that does not
take its answer is given up by the kernel (see `baton.gateway.server.listen`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from baton.gateway import metrics

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`head_s`: from the connection, or from a request's first byte, to the end of its head."""

    head_bytes: int = 64 << 10
    head_s: float = 30.0
    connections: int = 4096


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What exceeds the limits gets a bare 431 or 503, or is just closed when it is too slow."""

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._reads_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(_FULL, "connections")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._reads_head:  # still: all of it belongs to the head
            self._count(len(data))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reads_head, self._head_bytes = True, 0
        if self._head_timer is None:
            self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if not self._count(len(name) + len(value)):
            raise ValueError("the head is too large")  # ends the parser

    def on_headers_complete(self) -> None:
        self._reads_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _count(self, size: int) -> bool:
        self._head_bytes += size
        if self._head_bytes <= self._limits.head_bytes:
            return True
        if not self.transport.is_closing():
            self._refuse(_TOO_LARGE, "head")
        return False

    def _refuse(self, answer: bytes, limit: str) -> None:
        metrics.REFUSED_CONNECTIONS.labels(limit).inc()
        self._stop_timer()
        self.transport.write(answer)
        self.transport.close()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        metrics.REFUSED_CONNECTIONS.labels("slow").inc()
        self.transport.abort()
