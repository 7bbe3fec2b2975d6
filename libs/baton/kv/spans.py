"""What a read moves: layers x pages, or runs of bytes, each of which lies together on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from baton.kv.memory import PoolMemory

Offsets: TypeAlias = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """`sizes[i]` bytes from `remote[i]` in the source's pool go to `local[i]` in own memory. int64, all in bytes."""

    local: Offsets
    sizes: Offsets
    remote: Offsets

    @classmethod
    def joined(cls, local: Offsets, remote: Offsets, size: int, largest_bytes: int = 1 << 62) -> Runs:
        """Runs of pieces of `size` bytes each, in order; pieces that are neighbours on both sides are one run, of
        `largest_bytes` at most unless a piece is larger."""
        begins = (np.diff(local, prepend=-2 * size) != size) | (np.diff(remote, prepend=-2 * size) != size)
        begins[:: max(1, largest_bytes // size)] = True
        at = np.flatnonzero(begins)
        return cls(local[at], np.diff(at, append=len(local)) * size, remote[at])

    @classmethod
    def one(cls, local: int, remote: int, size: int) -> Runs:
        return cls(*(np.array([value], np.int64) for value in (local, size, remote)))

    def shifted(self, by: int) -> Runs:
        """The same, to places in own memory that are so many bytes later."""
        return Runs(self.local + by, self.sizes, self.remote)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(offset in own memory, bytes, offset in the source's pool)."""
        return zip(self.local.tolist(), self.sizes.tolist(), self.remote.tolist(), strict=True)

    @property
    def total_bytes(self) -> int:
        return int(self.sizes.sum())

    def within(self, local_bytes: int, remote_bytes: int) -> bool:
        """Whether all of it lies in memory of these sizes."""
        if not len(self):
            return True
        ends = int((self.local + self.sizes).max()), int((self.remote + self.sizes).max())
        least = min(int(self.local.min()), int(self.remote.min()), int(self.sizes.min()))
        return least >= 0 and ends[0] <= local_bytes and ends[1] <= remote_bytes


@dataclass(frozen=True, slots=True, eq=False)
class PageRange:
    """Layers of `remote_pages` go to `local_pages`, in pools of one layout."""

    layers: range
    local_pages: npt.NDArray[np.uint32]
    remote_pages: npt.NDArray[np.uint32]

    def runs(self, pool: PoolMemory, source_pages: int, largest_bytes: int) -> Runs:
        """In order of layers, then of pages. `source_pages`: of the source's pool."""
        size = pool.layout.page_bytes
        layers = np.arange(self.layers.start, self.layers.stop, dtype=np.int64)[:, None]
        local = (layers * pool.pages + self.local_pages).ravel()
        remote = (layers * source_pages + self.remote_pages).ravel()
        return Runs.joined(local * size, remote * size, size, largest_bytes)
