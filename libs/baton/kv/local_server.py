"""The agent's end of the local socket: accepts workers, takes their pool's file descriptor, exchanges messages.

Knows no handoffs. The owner of a `WorkerConnection` decides when it may be closed: only when no operation writes
into that worker's pool any more, since the worker takes the end of the connection for exactly that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from baton.core.errors import BatonError, ConfigError, InternalError
from baton.kv import frames
from baton.kv.local import AgentMessage, Hello, WorkerMessage
from baton.kv.sockets import ready

log = structlog.get_logger(__name__)

HELLO_TIMEOUT_S = 5.0
_RECEIVE_BYTES = 256 << 10


class WorkerConnection:
    """One worker's connection after its Hello. `pool_fd` belongs to whoever handles the connection."""

    def __init__(self, sock: socket.socket, hello: Hello, pool_fd: int, decoder: frames.FrameDecoder) -> None:
        self.hello = hello
        self.pool_fd = pool_fd
        self._sock = sock
        self._decoder = decoder
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._closed = False

    async def messages(self) -> AsyncIterator[WorkerMessage]:
        """All messages until the worker closes the connection or dies. InternalError: it sent what is not ours."""
        data: bytes = b""
        while True:
            for message in self._decoder.feed(data):
                yield message  # type: ignore[misc]
            try:
                data = await self._loop.sock_recv(self._sock, _RECEIVE_BYTES)
            except OSError:
                return
            if not data:
                return

    def send(self, message: AgentMessage) -> None:
        """Send in order, never blocks. Dropped when the connection is gone: the worker learns that by its end."""
        if self._closed:
            return
        idle = not self._unsent
        self._unsent += frames.encode(message)
        if idle:
            self._flush()

    def _flush(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent, socket.MSG_NOSIGNAL)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._unsent.clear()  # broken: `messages` ends
        if self._unsent:
            self._loop.add_writer(self._sock, self._flush)
        else:
            self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self._sock)
            self._sock.close()


async def serve_workers(listener: socket.socket, handle: Callable[[WorkerConnection], Awaitable[None]]) -> None:
    """Serve until cancelled, then close `listener` and remove its path.

    `handle` runs in a task per connection, which is cancelled with the server; the connection is closed when it
    returns.
    """
    name = listener.getsockname()
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            sock, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(_serve_one(sock, handle))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            os.unlink(name)


def listen(path: str) -> socket.socket:
    """Listen at a Unix socket; a path that a dead process left behind is taken over.

    Raises ConfigError when another process listens there, or when it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if os.path.exists(path):
            _remove_stale(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(16)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on the Unix socket {path}: {error}", param="socket_path") from error
    except ConfigError:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ConfigError(f"another process listens on the Unix socket {path}", param="socket_path")


async def _serve_one(sock: socket.socket, handle: Callable[[WorkerConnection], Awaitable[None]]) -> None:
    sock.setblocking(False)
    try:
        connection = await asyncio.wait_for(_receive_hello(sock), HELLO_TIMEOUT_S)
    except (OSError, BatonError, TimeoutError) as error:
        log.warning("worker connection refused", error=str(error) or type(error).__name__)
        sock.close()
        return
    try:
        await handle(connection)
    finally:
        connection.close()


async def _receive_hello(sock: socket.socket) -> WorkerConnection:
    """Read until the first message is complete; the descriptor comes with its first byte."""
    decoder = frames.from_worker()
    received: list[int] = []
    try:
        while True:
            await ready(sock, write=False)
            data, fds, _, _ = socket.recv_fds(sock, _RECEIVE_BYTES, 1)
            received += fds
            if not data:
                raise InternalError("the connection ended before its first message")
            for message in decoder.feed(data):
                if not isinstance(message, Hello):
                    raise InternalError(f"the first message is {type(message).__name__}, not Hello")
                if len(received) != 1:
                    raise InternalError(f"Hello came with {len(received)} file descriptors, not one")
                return WorkerConnection(sock, message, received.pop(), decoder)
    finally:
        for fd in received:
            os.close(fd)
