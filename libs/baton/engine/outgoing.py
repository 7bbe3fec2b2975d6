"""Cached blocks that leave the pool: other workers read them where they are, or they are copied to the host tier.

A block that is lent stays as long as its reader has it. One that is moved out is gone from the radix cache at once,
and its page is nobody's until the copy is made. The ledger (baton.engine.ledger) says whether blocks can leave at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from baton.core.attempt import Attempt
from baton.core.tiers import Tier
from baton.engine.api import Loan, MovedOut
from baton.engine.band_cache import Entry, in_order
from baton.engine.bounded import BoundedPages
from baton.engine.pool import PageAllocator
from baton.engine.radix import Node, RadixCache


class Outgoing:
    """Loans of cached prefixes, and batches that are on their way to the host tier. Not thread-safe."""

    def __init__(
        self,
        allocator: PageAllocator,
        cache: RadixCache,
        bounded: BoundedPages,
        free: Callable[[list[int]], None],
        page_size: int,
    ) -> None:
        """`bounded`: what blocks have beside their pages in `cache`. `free` takes pages that nobody needs any more."""
        self._allocator = allocator
        self._cache = cache
        self._bounded = bounded
        self._free = free
        self._page_size = page_size
        self._moving: dict[int, list[int]] = {}  # pages by batch, which are being copied to the host tier
        self._batches = 0
        self._free_target = 0  # pages to keep free by moving cached blocks to the host tier; 0 = there is none
        self._loans: dict[Attempt, tuple[Node, list[Entry]]] = {}  # cached prefixes that other workers read

    @property
    def locked(self) -> list[Node]:
        """Nodes of the radix cache that loans lock, each once for each of them."""
        return [node for node, _ in self._loans.values()]

    @property
    def lent(self) -> Iterator[Entry]:
        """What loans lock besides."""
        return (entry for _, entries in self._loans.values() for entry in entries)

    @property
    def moving_pages(self) -> Iterator[int]:
        return (page for pages in self._moving.values() for page in pages)

    def lend(self, attempt: Attempt, block_hashes: Sequence[bytes]) -> Loan:
        """See StepEngine.lend. An attempt has one loan at most: a second one is empty."""
        matched = self._cache.match(block_hashes, len(block_hashes))
        if not matched or attempt in self._loans:
            return Loan([], [])
        names = self._cache.path(block_hashes[matched - 1])
        first = len(names) - matched
        blocks = self._bounded.usable(names, len(names))
        while blocks > first and self._exceeds(blocks, first + len(block_hashes)):
            blocks = self._bounded.usable(names, blocks - 1)
        if blocks <= first:
            return Loan([], [])
        node, full = self._cache.acquire(names, blocks)
        entries = self._bounded.entries(names, blocks)
        self._loans[attempt] = node, entries
        pages = [*(full if self._bounded.has_full else []), *in_order(entries, Entry.lock)]
        return Loan(pages, self._allocator.generations(pages), blocks * self._page_size)

    def _exceeds(self, blocks: int, wanted: int) -> bool:
        """Whether a prefix has more pages than its reader has for the longer one that is wanted: chunks may."""
        spared = (wanted - blocks) * self._bounded.has_full
        return self._bounded.pages_after(blocks) > self._bounded.pages_after(wanted) + spared

    def take_back(self, attempt: Attempt) -> None:
        """See StepEngine.take_back."""
        if attempt in self._loans:
            node, entries = self._loans.pop(attempt)
            for entry in entries:
                entry.unlock()
            self._cache.release(node)

    def use_tier(self, free_pages: int) -> None:
        """See StepEngine.use_tier."""
        self._free_target = free_pages
        if not free_pages:
            self._cache.place(list(self._cache.elsewhere), None)

    def move_out(self) -> MovedOut | None:
        """Choose cached blocks for the host tier when pages run short; their pages are nobody's until `moved`."""
        lacking = self._free_target - self._allocator.free_pages - sum(map(len, self._moving.values()))
        if lacking <= self._free_target // 4:  # a few larger batches rather than one with every step
            return None
        moved = self._choose(lacking)
        if not moved:
            return None
        self._cache.place([name for name, _ in moved], Tier.HOST)
        self._batches += 1
        batch = MovedOut(self._batches, [name for name, _ in moved], [page for _, page in moved])
        self._moving[batch.number] = batch.page_ids
        return batch

    def _choose(self, count: int) -> list[tuple[bytes, int]]:
        """Pages, with their names, that nobody uses: least recently used blocks with all that is here of them. Those
        that moved out before are among them, so that whoever has them knows what was used last. What requests went past
        goes before these. It is of use only where others branch off: that moves, and the rest is evicted."""
        moved, evicted = self._bounded.leave_passed(count)
        self._free(evicted)
        while len(evicted) + len(moved) < count:
            if self._bounded.has_full and (block := self._cache.evict_one()) is not None:
                moved += [block, *self._bounded.leave(block[0])]
            elif not self._bounded.has_full and (end := self._bounded.oldest_end()) is not None:
                moved += self._bounded.leave(end)
            else:
                break
        return moved

    def moved(self, batch: int) -> None:
        """See StepEngine.moved."""
        self._free(self._moving.pop(batch, []))
