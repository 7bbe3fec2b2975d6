"""Cached blocks that leave the pool: other workers read them where they are, or they are copied to the host tier.

A block that is lent stays as long as its reader has it. One that is moved out is gone from the radix cache at once,
and its page is nobody's until the copy is made. The ledger (baton.engine.ledger) says whether blocks can leave at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from baton.core.attempt import Attempt
from baton.engine.api import Loan, MovedOut
from baton.engine.pool import PageAllocator
from baton.engine.radix import Node, RadixCache


class Outgoing:
    """Loans of cached prefixes, and batches that are on their way to the host tier. Not thread-safe."""

    def __init__(
        self, allocator: PageAllocator, cache: RadixCache, free: Callable[[list[int]], None], *, can_leave: bool
    ) -> None:
        """`free` takes pages that nobody needs any more. Not `can_leave`: blocks stay where they are."""
        self._allocator = allocator
        self._cache = cache
        self._free = free
        self._can_leave = can_leave
        self._moving: dict[int, list[int]] = {}  # pages by batch, which are being copied to the host tier
        self._batches = 0
        self._free_target = 0  # pages to keep free by moving cached blocks to the host tier; 0 = there is none
        self._loans: dict[Attempt, Node] = {}  # cached prefixes that other workers read

    @property
    def locked(self) -> Iterable[Node]:
        """Nodes of the radix cache that loans lock, each once for each of them."""
        return self._loans.values()

    @property
    def moving_pages(self) -> Iterator[int]:
        return (page for pages in self._moving.values() for page in pages)

    def lend(self, attempt: Attempt, block_hashes: Sequence[bytes]) -> Loan:
        """See StepEngine.lend. An attempt has one loan at most: a second one is empty."""
        blocks = self._cache.match(block_hashes, len(block_hashes)) if self._can_leave else 0
        if not blocks or attempt in self._loans:
            return Loan([], [])
        self._loans[attempt], pages = self._cache.acquire(block_hashes, blocks)
        return Loan(pages, self._allocator.generations(pages))

    def take_back(self, attempt: Attempt) -> None:
        """See StepEngine.take_back."""
        node = self._loans.pop(attempt, None)
        if node is not None:
            self._cache.release(node)

    def use_tier(self, free_pages: int) -> None:
        """See StepEngine.use_tier."""
        self._free_target = free_pages if self._can_leave else 0
        if not free_pages:
            self._cache.place(list(self._cache.elsewhere), None)

    def move_out(self) -> MovedOut | None:
        """Choose cached blocks for the host tier when pages run short; their pages are nobody's until `moved`."""
        lacking = self._free_target - self._allocator.free_pages - sum(map(len, self._moving.values()))
        if lacking <= self._free_target // 4:  # a few larger batches rather than one with every step
            return None
        moved = self._cache.move_out(lacking)
        if not moved:
            return None
        self._batches += 1
        batch = MovedOut(self._batches, [name for name, _ in moved], [page for _, page in moved])
        self._moving[batch.number] = batch.page_ids
        return batch

    def moved(self, batch: int) -> None:
        """See StepEngine.moved."""
        self._free(self._moving.pop(batch, []))
