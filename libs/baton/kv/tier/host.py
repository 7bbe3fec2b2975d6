"""Blocks in host memory, least recently used out first.

A block is one page of every layer; it takes one slot of a mapping that is made once, in huge pages where the kernel
gives them. Each block has a checksum of its own, which is compared when it comes back. Not thread-safe: one thread
copies, and it alone calls.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from xxhash import xxh3_64

from baton.core.errors import ConfigError
from baton.kv.memory import PoolMemory


@dataclass(frozen=True, slots=True)
class _Kept:
    slot: int
    checksum: int


class HostTier:
    """Room for as many blocks of `pool`'s layout as `capacity_bytes` hold.

    Raises ConfigError when that is not even one block, or the memory cannot be mapped. Memory is taken from the host
    as slots are first written.
    """

    def __init__(self, pool: PoolMemory, capacity_bytes: int) -> None:
        self._pool = pool
        self._page_bytes = pool.layout.page_bytes
        self.block_bytes = pool.layout.layers * self._page_bytes
        self.capacity = capacity_bytes // self.block_bytes
        if not self.capacity:
            raise ConfigError(
                f"a host tier of {capacity_bytes} bytes holds nothing: a block has {self.block_bytes}",
                param="host_tier_bytes",
            )
        try:
            self._map = mmap.mmap(-1, self.capacity * self.block_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(f"cannot map a host tier of {capacity_bytes} bytes: {error}") from error
        with suppress(OSError):  # a kernel without transparent huge pages does without
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(self._map)
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()  # least recently used first
        self._free: list[int] = []  # slots that were used before
        self._used_slots = 0  # slots from here on never were

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._kept

    @property
    def hashes(self) -> list[bytes]:
        """All blocks, least recently used first."""
        return list(self._kept)

    def store(self, blocks: Iterable[tuple[bytes, int]]) -> list[bytes]:
        """Copy (hash, page of the pool) in; returns the blocks that had to leave for them.

        A block that is kept already is only marked as used.
        """
        dropped = []
        for block_hash, page in blocks:
            if block_hash in self._kept:
                self._kept.move_to_end(block_hash)
                continue
            if len(self._kept) == self.capacity:
                oldest, kept = self._kept.popitem(last=False)
                self._free.append(kept.slot)
                dropped.append(oldest)
            slot = self._take_slot()
            self._kept[block_hash] = _Kept(slot, self._copy(slot, page, to_pool=False))
        return dropped

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
            if self._copy(kept.slot, page, to_pool=True) != kept.checksum:
                self.drop(block_hash)
                break
            loaded += 1
        for block_hash, _ in reversed(blocks[:loaded]):
            self._kept.move_to_end(block_hash)
        return loaded

    def drop(self, block_hash: bytes) -> None:
        """Forget a block, if it is kept."""
        kept = self._kept.pop(block_hash, None)
        if kept is not None:
            self._free.append(kept.slot)

    def close(self) -> None:
        """Give the memory back. Idempotent."""
        self._kept.clear()
        self._free.clear()
        self._memory.release()
        self._map.close()

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._used_slots += 1
        return self._used_slots - 1

    def _copy(self, slot: int, page: int, *, to_pool: bool) -> int:
        """Copy a block between its slot and a page of the pool; returns the checksum of what has arrived."""
        digest = xxh3_64()
        for layer in range(self._pool.layout.layers):
            at = slot * self.block_bytes + layer * self._page_bytes
            kept, own = self._memory[at : at + self._page_bytes], self._pool.page(layer, page)
            source, target = (kept, own) if to_pool else (own, kept)
            target[:] = source
            digest.update(target)
        return digest.intdigest()
