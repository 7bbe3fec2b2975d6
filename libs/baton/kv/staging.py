"""Memory that reads go to: a pool, or memory for bytes on their way to one."""

from __future__ import annotations

import ctypes
import mmap
from typing import Protocol


class Memory(Protocol):
    """Mapped memory. `buffer`: all of it, writable; `address`: where it is in this process."""

    address: int
    size_bytes: int
    buffer: memoryview


class StagingMemory:
    """Memory of this process alone, taken from the host as it is first written."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._map = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.buffer = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
