"""Blocks in host memory, least recently used out first.

A block is one page of every layer; it takes one slot of a mapping that is made once, in huge pages where the kernel
gives them. Each block has a checksum of its own, which is compared before it goes back. Where a disk is below, the
oldest blocks leave for it ahead of need (`leave`), so that no copy waits for the disk. Not thread-safe: one
thread copies, and it alone calls.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from baton.core.errors import ConfigError
from baton.kv.memory import PoolMemory


@dataclass(slots=True)
class _Kept:
    slot: int
    checksum: int
    leaving: bool = False  # somebody reads the slot: it stays as it is until `left` or `stay`


@dataclass(frozen=True, slots=True)
class Leaving:
    """A block on its way to the disk. `body`: the bytes of all layers in order, which stay as they are until `left`."""

    block_hash: bytes
    body: memoryview
    checksum: int


def pool_array(pool: PoolMemory) -> npt.NDArray[np.uint8]:
    """The pool's bytes, not copied: [layers, pages, page_bytes]; `[:, page]` is a block."""
    return np.frombuffer(pool.buffer, np.uint8).reshape(pool.layout.layers, pool.pages, pool.layout.page_bytes)


class HostTier:
    """Room for as many blocks of `pool`'s layout as `capacity_bytes` hold.

    Raises ConfigError when that is not even one block, or the memory cannot be mapped. Memory is taken from the host
    as slots are first written.
    """

    def __init__(self, pool: PoolMemory, capacity_bytes: int) -> None:
        layout = pool.layout
        self.block_bytes = layout.layers * layout.page_bytes
        self.capacity = capacity_bytes // self.block_bytes
        if not self.capacity:
            raise ConfigError(
                f"a host tier of {capacity_bytes} bytes holds nothing: a block has {self.block_bytes}",
                param="host_tier_bytes",
            )
        try:
            memory = mmap.mmap(-1, self.capacity * self.block_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(f"cannot map a host tier of {capacity_bytes} bytes: {error}") from error
        with suppress(OSError):  # a kernel without transparent huge pages does without
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._slots = np.frombuffer(memory, np.uint8).reshape(self.capacity, layout.layers, layout.page_bytes)
        self._pool = pool_array(pool)
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()  # least recently used first
        self._free: list[int] = []  # slots that were used before
        self._used_slots = 0  # slots from here on never were
        self._leaving = 0
        self._most_at_once = 1  # blocks that were stored at once so far

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._kept

    @property
    def hashes(self) -> list[bytes]:
        """All blocks, least recently used first."""
        return list(self._kept)

    def store(self, blocks: Sequence[tuple[bytes, int]]) -> list[bytes]:
        """Copy (hash, page of the pool) in; returns the blocks that are not here for it: older ones that had to make
        room, and those of `blocks` for which there was none, since all that is here is leaving.

        A block that is kept already is only marked as used.
        """
        lost = []
        self._most_at_once = max(self._most_at_once, len(blocks))
        for block_hash, page in blocks:
            if block_hash in self._kept:
                self._kept.move_to_end(block_hash)
                continue
            if len(self._kept) == self.capacity:
                oldest = self._oldest()
                if oldest is None:
                    lost.append(block_hash)
                    continue
                self.drop(oldest)
                lost.append(oldest)
            slot = self._take_slot()
            np.copyto(self._slots[slot], self._pool[:, page])
            self._kept[block_hash] = _Kept(slot, xxh3_64_intdigest(self._slots[slot]))
        return [block_hash for block_hash in lost if block_hash not in self._kept]

    def load(self, blocks: Sequence[tuple[bytes, int]]) -> int:
        """Copy (hash, page of the pool) out, up to the first one that is not kept or not intact; returns how many.

        The blocks follow each other in a prompt: the first counts as used last, since those after it are of no use
        without it.
        """
        loaded = 0
        for block_hash, page in blocks:
            kept = self._kept.get(block_hash)
            if kept is None:
                break
            if xxh3_64_intdigest(self._slots[kept.slot]) != kept.checksum:
                self.drop(block_hash)
                break
            np.copyto(self._pool[:, page], self._slots[kept.slot])
            loaded += 1
        for block_hash, _ in reversed(blocks[:loaded]):
            self._kept.move_to_end(block_hash)
        return loaded

    def leave(self, most: int) -> list[Leaving]:
        """The oldest blocks, up to `most`, as far as slots are short for as many as came at once so far, but not more
        than half of all. `left` or `stay` must name them in the end."""
        wanted = max(1, min(self._most_at_once, self.capacity // 2))
        short = wanted - (self.capacity - len(self._kept)) - self._leaving
        chosen: list[Leaving] = []
        for block_hash, kept in self._kept.items():
            if len(chosen) >= min(most, short):
                break
            if not kept.leaving:
                kept.leaving = True
                chosen.append(Leaving(block_hash, memoryview(self._slots[kept.slot]).cast("B"), kept.checksum))
        self._leaving += len(chosen)
        return chosen

    def left(self, block_hashes: Iterable[bytes]) -> None:
        """Nobody reads these blocks of `leave` any more: their slots are free."""
        for block_hash in block_hashes:
            if self._end_leaving(block_hash):
                self.drop(block_hash)

    def stay(self, block_hashes: Iterable[bytes]) -> None:
        """These blocks of `leave` could not go, and nobody reads them any more."""
        for block_hash in block_hashes:
            self._end_leaving(block_hash)

    def drop(self, block_hash: bytes) -> None:
        """Forget a block, if it is kept; one that is leaving goes when it has left."""
        kept = self._kept.get(block_hash)
        if kept is not None and not kept.leaving:
            del self._kept[block_hash]
            self._free.append(kept.slot)

    def close(self) -> None:
        """Give the memory back, once nothing of `leave` is referred to. Idempotent."""
        self._kept.clear()
        self._free.clear()
        self._slots = self._pool = np.empty((0, 0, 0), np.uint8)

    def _end_leaving(self, block_hash: bytes) -> bool:
        kept = self._kept.get(block_hash)
        if kept is None or not kept.leaving:
            return False
        kept.leaving = False
        self._leaving -= 1
        return True

    def _oldest(self) -> bytes | None:
        return next((block_hash for block_hash, kept in self._kept.items() if not kept.leaving), None)

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._used_slots += 1
        return self._used_slots - 1
