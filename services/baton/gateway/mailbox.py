"""Waiting without a timer for every wait: what streams do once per token, thousands of times a second.

An event loop's timers cost as much as the rest of such a wait. Nearly none of them ever rings, so one that is already
running is let run, and set anew when it rings too early.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Alarm:
    """Calls `ring` when a time comes that is moved, mostly to later, far more often than it comes."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._due_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def set(self, seconds: float) -> None:
        """Ring so many seconds from now, instead of whenever it was to ring before."""
        self._due_at = self._loop.time() + seconds
        if self._timer is None or self._due_at < self._timer_at:
            self._start_timer(self._due_at)

    def clear(self) -> None:
        """Do not ring. The timer goes on: the next `set` costs nothing."""
        self._due_at = None

    def close(self) -> None:
        self._due_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(when, self._on_timer), when

    def _on_timer(self) -> None:
        self._timer = None
        if self._due_at is None:
            return
        if self._loop.time() < self._due_at:
            self._start_timer(self._due_at)
        else:
            self._due_at = None
            self._ring()


class Mailbox(Generic[T]):
    """A queue of at most `most` items, of many writers and one reader, who takes all that is there. One event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: list[T] = []
        self._reader: asyncio.Future[None] | None = None
        self._has_room = asyncio.Event()
        self._alarm = Alarm(self._wake)

    async def put(self, item: T) -> None:
        """Waits while the mailbox is full."""
        while len(self._items) >= self._most:
            self._has_room.clear()
            await self._has_room.wait()
        self._items.append(item)
        self._wake()

    async def take(self, seconds: float) -> list[T]:
        """All items, waiting for the first so long at most; then the list is empty."""
        if not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            self._alarm.set(seconds)
            try:
                await self._reader
            finally:
                self._reader = None
                self._alarm.clear()
        items, self._items = self._items, []
        self._has_room.set()
        return items

    def close(self) -> None:
        """Nobody reads any more."""
        self._alarm.close()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
