"""Accepts connections on a listening socket, each served by a task of its own until it or the listener ends.

Shared by the transports that serve pages over sockets of their own. Knows no pages.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine


class Listener:
    """Serves `listening`, a non-blocking socket that it owns, by `serve(connection)`. Make it in a running loop."""

    def __init__(self, listening: socket.socket, serve: Callable[[socket.socket], Coroutine[None, None, None]]) -> None:
        self._socket = listening
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._accept(serve))

    async def close(self) -> None:
        """Accept no more, and end what is being served."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, serve: Callable[[socket.socket], Coroutine[None, None, None]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._socket)
            self._spawn(serve(connection))
