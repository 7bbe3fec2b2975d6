"""The tiers alone against what the machine gives: copies of memory, and plain reads and writes of a file.

No model, no agent, no event loop: blocks move between a pool and a tier as an agent's thread moves them, checksums and
all. The file system's cache is told to forget what is on disk before each read that is called cold.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.kv.memory import PoolMemory
from baton.kv.tier.disk import DiskTier
from baton.kv.tier.host import HostTier, Leaving, pool_array

Copy = Callable[[], object]


def measure(layout: KvLayout, size_bytes: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """GB/s of each way to move `size_bytes` of blocks, medians of `repeats` rounds in which all take turns."""
    blocks = max(1, size_bytes // (layout.layers * layout.page_bytes))
    pool = PoolMemory.create(layout, RESERVED_PAGES + 2 * blocks)
    pool_array(pool)[:] = np.random.default_rng(0).integers(0, 256, pool_array(pool).shape, np.uint8)
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        contestants = _Contestants(pool, blocks, Path(directory))
        taken: dict[str, list[float]] = {name: [] for name, _, _ in contestants.all()}
        for _ in range(repeats):
            for name, prepare, copy in contestants.all():
                prepare()
                start = time.perf_counter()
                copy()
                taken[name].append(time.perf_counter() - start)
        contestants.close()
    pool.close()
    moved = blocks * layout.layers * layout.page_bytes
    rates = {name: moved / statistics.median(times) / 1e9 for name, times in taken.items()}
    limits = {"memory": "copy of memory", "disk, cached": "file, cached", "disk, cold": "file, cold"}
    return [
        {
            "what": f"{direction} {tier}",
            "gb_per_s": rates[f"{direction} {tier}"],
            "limit": f"{direction} {limit}",
            "limit_gb_per_s": rates[f"{direction} {limit}"],
            "share_of_limit": rates[f"{direction} {tier}"] / rates[f"{direction} {limit}"],
        }
        for tier, limit in limits.items()
        for direction in (("out to", "back from") if tier != "disk, cold" else ("back from",))
    ]


class _Contestants:
    """The same blocks, in both tiers, in plain memory and in a plain file."""

    def __init__(self, pool: PoolMemory, blocks: int, folder: Path) -> None:
        self._pages = pool_array(pool)
        self._out = list(range(RESERVED_PAGES, RESERVED_PAGES + blocks))
        self._back = list(range(RESERVED_PAGES + blocks, RESERVED_PAGES + 2 * blocks))
        self._names = [number.to_bytes(16, "little") for number in range(blocks)]
        self._pool, self._folder = pool, folder
        block_bytes = pool.layout.layers * pool.layout.page_bytes
        self._host = HostTier(pool, 2 * blocks * block_bytes)
        self._disk = DiskTier(pool, folder / "tier", 64 * blocks * (block_bytes + 4096))
        list(self._disk.recover())
        self._plain = np.zeros((blocks, pool.layout.layers, pool.layout.page_bytes), np.uint8)
        self._file = os.open(folder / "plain", os.O_RDWR | os.O_CREAT)
        self._round = 0

    def all(self) -> list[tuple[str, Copy, Copy]]:
        """(name, what comes before it, what is timed). What is brought back was moved out by those before."""
        return [
            ("out to memory", self._forget, self._host_out),
            ("out to copy of memory", _nothing, self._plain_out),
            ("back from memory", _nothing, self._host_back),
            ("back from copy of memory", _nothing, self._plain_back),
            ("out to disk, cached", self._rename, self._disk_out),
            ("out to file, cached", self._empty, self._file_out),
            ("back from disk, cached", _nothing, self._disk_back),
            ("back from file, cached", _nothing, self._file_back),
            ("back from disk, cold", self._chill, self._disk_back),
            ("back from file, cold", self._chill, self._file_back),
        ]

    def close(self) -> None:
        os.close(self._file)
        self._disk.close()
        self._host.close()
        self._pages = np.empty((0, 0, 0), np.uint8)

    def _forget(self) -> None:
        for block_hash in self._names:
            self._host.drop(block_hash)

    def _host_out(self) -> None:
        self._host.store(list(zip(self._names, self._out, strict=True)))

    def _host_back(self) -> None:
        _all(self._host.load(list(zip(self._names, self._back, strict=True))), self._names)

    def _plain_out(self) -> None:
        for slot, page in enumerate(self._out):
            np.copyto(self._plain[slot], self._pages[:, page])

    def _plain_back(self) -> None:
        for slot, page in enumerate(self._back):
            np.copyto(self._pages[:, page], self._plain[slot])

    def _rename(self) -> None:
        """Name blocks as the disk has not seen them: what it has need not be written."""
        self._round += 1
        self._disk_names = [(self._round << 64 | slot).to_bytes(16, "little") for slot in range(len(self._plain))]
        self._leaving = [
            Leaving(name, memoryview(block).cast("B"), xxh3_64_intdigest(block))
            for name, block in zip(self._disk_names, self._plain, strict=True)
        ]

    def _disk_out(self) -> None:
        self._disk.store(self._leaving)

    def _disk_back(self) -> None:
        _all(self._disk.load(list(zip(self._disk_names, self._back, strict=True))), self._disk_names)

    def _empty(self) -> None:
        os.ftruncate(self._file, 0)

    def _file_out(self) -> None:
        for slot in range(len(self._plain)):
            os.pwrite(self._file, memoryview(self._plain[slot]).cast("B"), slot * self._plain[slot].nbytes)

    def _file_back(self) -> None:
        for slot in range(len(self._plain)):
            os.preadv(self._file, [memoryview(self._plain[slot]).cast("B")], slot * self._plain[slot].nbytes)

    def _chill(self) -> None:
        forget(self._folder / "plain", *(self._folder / "tier").glob("*.kvseg"))


def forget(*paths: Path) -> None:
    """Write the files out, and have the file system's cache forget them."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _nothing() -> None:
    """There is nothing to prepare."""


def _all(loaded: int, names: list[bytes]) -> None:
    if loaded != len(names):
        raise RuntimeError(f"{loaded} of {len(names)} blocks came back")
