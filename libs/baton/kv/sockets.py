"""Scattered sends and receives on non-blocking sockets of the event loop, which hold no lock and keep no copy."""

from __future__ import annotations

import asyncio
import socket
from collections import deque

_VIEWS_PER_CALL = 128
_BYTES_PER_TURN = 4 << 20  # then others on the loop have theirs


async def send_all(sock: socket.socket, views: deque[memoryview]) -> None:
    """Send all views in order, consuming them. Raises OSError when the connection breaks."""
    turn = 0
    while views:
        try:
            count = sock.sendmsg(first_of(views), (), socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            await ready(sock, write=True)
            continue
        advance(views, count)
        turn = await take_turns(turn + count)


async def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Raises OSError when the connection ends before `count` bytes."""
    data = bytearray(count)
    views = deque([memoryview(data)] if count else [])
    while views:
        if received := receive_now(sock, first_of(views)):
            advance(views, received)
        else:
            await ready(sock, write=False)
    return bytes(data)


def receive_now(sock: socket.socket, views: list[memoryview]) -> int:
    """Receive into `views` what is there already; 0 when nothing is. Raises OSError when the connection has ended."""
    try:
        count = sock.recvmsg_into(views)[0]
    except (BlockingIOError, InterruptedError):
        return 0
    if not count:
        raise ConnectionResetError("it was closed by the other side")
    return count


def first_of(views: deque[memoryview]) -> list[memoryview]:
    """As many views as one call may take."""
    return [views[n] for n in range(min(len(views), _VIEWS_PER_CALL))]


def advance(views: deque[memoryview], count: int) -> None:
    """Drop the first `count` bytes."""
    while count:
        head = views[0]
        if count < len(head):
            views[0] = head[count:]
            return
        count -= len(head)
        views.popleft()


async def take_turns(turn_bytes: int) -> int:
    """Let others run after a turn's bytes; returns what counts of the present turn."""
    if turn_bytes < _BYTES_PER_TURN:
        return turn_bytes
    await asyncio.sleep(0)
    return 0


async def ready(sock: socket.socket, *, write: bool) -> None:
    """Wait until the socket can take or give bytes."""
    loop = asyncio.get_running_loop()
    settled: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(sock, _settle, settled)
    try:
        await settled
    finally:
        remove(sock)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
