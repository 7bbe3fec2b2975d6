"""What is kept between requests: bytes by key, each for a limited time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol


class Records(Protocol):
    """Calls may run concurrently. All of them may raise Unavailable."""

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep `value`, instead of what is there, for `ttl_s` seconds."""

    async def get(self, key: str) -> bytes | None: ...

    async def delete(self, key: str) -> bool:
        """False: there was none."""

    async def close(self) -> None: ...


class MemoryRecords:
    """Records of this process alone, at most `limit_bytes` of them (keys and values): the oldest make room.

    A record that is larger than that by itself is not kept. `clock`: seconds, never going back.
    """

    def __init__(self, limit_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._records: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # by the time of the last put
        self.used_bytes = 0

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        self._remove(key)
        self._records[key] = (self._clock() + ttl_s, value)
        self.used_bytes += _size(key, value)
        while self.used_bytes > self._limit_bytes:
            self._remove(next(iter(self._records)))

    async def get(self, key: str) -> bytes | None:
        found = self._records.get(key)
        if found is None:
            return None
        ends_at, value = found
        if ends_at <= self._clock():
            self._remove(key)
            return None
        return value

    async def delete(self, key: str) -> bool:
        found = await self.get(key) is not None
        self._remove(key)
        return found

    async def close(self) -> None:
        self._records.clear()
        self.used_bytes = 0

    def _remove(self, key: str) -> None:
        found = self._records.pop(key, None)
        if found is not None:
            self.used_bytes -= _size(key, found[1])


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value)
