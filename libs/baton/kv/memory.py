"""Pool memory: one memfd that the worker's tensors live in and its agent maps too.

The worker creates it and sends the file descriptor to its agent with `Hello`; the agent attaches. Bytes:
`[layers][pages][page_bytes]`. Knows no torch, no transport and no requests; who may touch which page when is the
engine's and the handoff's business.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import weakref
from collections.abc import Callable

from baton.core.errors import ConfigError
from baton.core.layout import CANARY_PAGE, RESERVED_PAGES, KvLayout

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_MADV_POPULATE_WRITE = 23  # Linux 5.14; not named by Python
_POPULATE_STEP_BYTES = 64 << 20


class PoolMemory:
    """A mapped pool. `fd` is owned by this object, and open until `close`, or until nobody refers to the object.

    `buffer` is the whole pool as a writable memoryview; `address` is where it is mapped in this process.
    Views that outlive `close` keep the mapping alive; the address must not be used after it.
    """

    def __init__(self, layout: KvLayout, pages: int, fd: int) -> None:
        self.layout = layout
        self.pages = pages
        self.fd = fd
        self.size_bytes = layout.pool_bytes(pages)
        self._map: mmap.mmap | None = mmap.mmap(fd, self.size_bytes, mmap.MAP_SHARED)
        self.buffer = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._release = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, layout: KvLayout, pages: int) -> PoolMemory:
        """A new pool, all zeros; its size is sealed. It takes memory from the host as pages are first written, or by
        `populate`."""
        if pages <= RESERVED_PAGES:
            raise ConfigError(f"a pool of {pages} pages holds nothing: {RESERVED_PAGES} pages are reserved")
        fd = os.memfd_create("baton-kv-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, layout.pool_bytes(pages))
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(layout, pages, fd)
        except OSError as error:
            os.close(fd)
            size_gb = layout.pool_bytes(pages) / 1e9
            raise ConfigError(f"cannot map a KV pool of {pages} pages ({size_gb:.2f} GB): {error}") from error

    @classmethod
    def attach(cls, fd: int, layout: KvLayout, pages: int) -> PoolMemory:
        """Map a pool that another process created. Takes ownership of `fd`, also when it raises ConfigError.

        Refused: a size other than `layout` and `pages` ask for, and a file that could shrink under the mapping
        (the next access would kill this process).
        """
        try:
            expected = layout.pool_bytes(pages)
            actual = os.fstat(fd).st_size
            if pages <= RESERVED_PAGES or actual != expected:
                raise ConfigError(f"the pool's file has {actual} bytes, {pages} pages of this layout are {expected}")
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ConfigError("the pool's file is not sealed against a change of its size")
            return cls(layout, pages, fd)
        except (OSError, ConfigError) as error:
            os.close(fd)
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"cannot map the pool that the worker sent: {error}") from error

    def populate(self, progress: Callable[[int, int], None]) -> None:
        """Take all of the pool's memory from the host now: no step waits for it, and a lack of it shows at once.

        `progress(done, total)` counts bytes. Nothing happens where the kernel does not offer it (Linux 5.14 does).
        Raises ConfigError when the host has too little.
        """
        assert self._map is not None
        for start in range(0, self.size_bytes, _POPULATE_STEP_BYTES):
            progress(start, self.size_bytes)
            try:
                self._map.madvise(_MADV_POPULATE_WRITE, start, min(_POPULATE_STEP_BYTES, self.size_bytes - start))
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return
                raise ConfigError(
                    f"the host has no memory for a KV pool of {self.size_bytes / 1e9:.2f} GB: lower kv_memory_bytes "
                    f"({error})",
                    param="kv_memory_bytes",
                ) from error

    def offset(self, layer: int, page: int) -> int:
        """Where a page of a layer starts, in bytes from the pool's start."""
        return (layer * self.pages + page) * self.layout.page_bytes

    def page(self, layer: int, page: int) -> memoryview:
        """The bytes of one page of one layer, writable, not copied."""
        if not (0 <= layer < self.layout.layers and 0 <= page < self.pages):
            raise IndexError(f"layer {layer}, page {page} of {self.layout.layers} layers of {self.pages} pages")
        start = self.offset(layer, page)
        return self.buffer[start : start + self.layout.page_bytes]

    def write_canary(self, worker_epoch: int) -> None:
        """Fill the canary page of every layer with what readers expect of this incarnation. Called by the worker."""
        for layer in range(self.layout.layers):
            self.page(layer, CANARY_PAGE)[:] = canary(self.layout, worker_epoch, layer)

    def holds_canary(self, worker_epoch: int, page: int = CANARY_PAGE) -> bool:
        """True when `page` of every layer is the canary of `worker_epoch`."""
        layers = range(self.layout.layers)
        return all(self.page(layer, page) == canary(self.layout, worker_epoch, layer) for layer in layers)

    def close(self) -> None:
        """Give up the mapping and the file descriptor. Idempotent."""
        self.buffer = memoryview(b"")
        self._map = None
        self._release()
        self.fd = -1


def canary(layout: KvLayout, worker_epoch: int, layer: int) -> bytes:
    """Content of one layer's canary page: differs between epochs and between layers, and within the page."""
    return hashlib.shake_128(f"baton-canary;{worker_epoch};{layer}".encode()).digest(layout.page_bytes)
