"""Cached pages of layers that attend to a part of their past: which blocks of a band are in the pool.

A *band* is the groups of layers (baton.core.layout) that attend to the same part, a window or a chunk; a block of it
is one page of each group. Blocks are known by their hash, and only those that are in the radix cache too are here. Any
of them may be missing: a prefix can be reused where all blocks are here that the next token attends to.

Blocks that nobody uses wait in two lines, oldest first. A block that its last user went past is of use only where a
prompt branches off right behind it: those go first. Others were the end of what somebody computed, which is where
conversations go on: they go with their block of the radix cache, or when nothing else is left.

Not thread-safe. Knows no requests, no tensors and no allocator.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from baton.core.errors import InternalError
from baton.core.hashing import page_name
from baton.core.tiers import Tier

Pages = tuple[int, ...]  # one of each group
T = TypeVar("T")
Elsewhere = Mapping[bytes, Tier]  # pages that are in the tiers below the pool, by name
# Bounds the search in a prefix whose windows are gone: what was gone past earlier went earlier, as a rule.
MOST_SKIPPED = 512


class BandCache:
    """Pages handed to `add` belong to the cache until it returns them. `note` hears of a block before it comes, and
    before it goes."""

    def __init__(self, note: Callable[[bytes], None] = lambda block_hash: None) -> None:
        self._note = note
        self._pages: dict[bytes, Pages] = {}
        self._locks: dict[bytes, int] = {}  # of blocks that somebody uses
        self._reused: set[bytes] = set()  # blocks that somebody went on from, or was lent
        self._passed: OrderedDict[bytes, None] = OrderedDict()
        self._ends: OrderedDict[bytes, None] = OrderedDict()
        self.doubled = 0  # locks on blocks beyond the first: as many blocks less than their users count are in use

    @property
    def unused(self) -> int:
        """Blocks that nobody uses."""
        return len(self._passed) + len(self._ends)

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._pages

    def peek(self, block_hash: bytes) -> Pages:
        """The pages of a block; none if it is not here."""
        return self._pages.get(block_hash, ())

    def usable(
        self,
        hashes: Sequence[bytes],
        blocks: int,
        first_block: Callable[[int], int],
        elsewhere: Callable[[bytes], bool] = lambda block_hash: False,
    ) -> int:
        """The most of the first `blocks` blocks after which a request can go on: `first_block(n)` is the first that
        the token after n blocks attends to. 0 when it would be more than MOST_SKIPPED blocks fewer. Blocks that are
        `elsewhere` count as being here."""
        end = at = blocks
        first = first_block(end)
        while at > first:
            at -= 1
            if hashes[at] not in self._pages and not elsewhere(hashes[at]):
                end = at
                if blocks - end > MOST_SKIPPED:
                    return 0
                first = first_block(end)
        return end

    def lock(self, block_hash: bytes) -> Pages:
        """Use a block that is here. Its pages stay until `unlock`."""
        locks = self._locks.get(block_hash, 0)
        self._locks[block_hash] = locks + 1
        self._reused.add(block_hash)
        if locks:
            self.doubled += 1
        else:
            self._passed.pop(block_hash, None)
            self._ends.pop(block_hash, None)
        return self._pages[block_hash]

    def add(self, block_hash: bytes, pages: Pages) -> None:
        """Take over the pages of a block that is not here. The caller has locked it."""
        if block_hash in self._pages:
            raise InternalError("band cache: a block was added twice")
        self._note(block_hash)
        self._pages[block_hash] = pages
        self._locks[block_hash] = 1

    def unlock(self, block_hash: bytes, *, passed: bool) -> None:
        """Drop one lock. `passed`: its user attends to it no more, but goes on."""
        locks = self._locks.pop(block_hash) - 1
        if locks:
            self._locks[block_hash] = locks
            self.doubled -= 1
        else:
            (self._passed if passed else self._ends)[block_hash] = None

    def pass_by(self, block_hash: bytes) -> None:
        """A block that was an end is none any more: whoever computed it has left another behind since."""
        if block_hash in self._ends:
            del self._ends[block_hash]
            self._passed[block_hash] = None

    def discard(self, block_hash: bytes) -> Pages:
        """The pages of a block that nobody uses, which is not here any more; none if it was not."""
        if block_hash in self._locks:
            raise InternalError("band cache: a block that is used cannot go")
        if block_hash in self._pages:
            self._note(block_hash)
        self._reused.discard(block_hash)
        self._passed.pop(block_hash, None)
        self._ends.pop(block_hash, None)
        return self._pages.pop(block_hash, ())

    @property
    def oldest_passed(self) -> bytes | None:
        """What `evict_passed` would evict."""
        return next(iter(self._passed), None)

    def is_used(self, block_hash: bytes) -> bool:
        return block_hash in self._locks

    def is_reused(self, block_hash: bytes) -> bool:
        """Whether a block has been used by others than who computed it."""
        return block_hash in self._reused

    @property
    def oldest_end(self) -> bytes | None:
        """What `evict_end` would evict."""
        return next(iter(self._ends), None)

    def evict_passed(self) -> Pages:
        """The pages of the oldest block that was gone past; none when there is none."""
        return self.discard(next(iter(self._passed))) if self._passed else ()

    def evict_end(self) -> Pages:
        """The pages of the oldest of the other blocks that nobody uses."""
        return self.discard(next(iter(self._ends))) if self._ends else ()

    def audit(self, locks: dict[bytes, int]) -> list[Pages]:
        """Check against the locks that users say they hold; return the pages of all blocks. For tests."""
        if locks != self._locks or self.doubled != sum(count - 1 for count in locks.values()):
            raise InternalError("band cache: locks are miscounted")
        if self._pages.keys() - self._locks.keys() != self._passed.keys() | self._ends.keys():
            raise InternalError("band cache: a block that nobody uses waits in no line, or in a wrong one")
        if self._passed.keys() & self._ends.keys():
            raise InternalError("band cache: a block waits in both lines")
        return list(self._pages.values())


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What a cache has of a block, or could have: `width` pages, of all those that the block has anywhere the
    `first`-th and the next ones."""

    cache: BandCache
    block_hash: bytes
    first: int
    width: int

    @property
    def is_here(self) -> bool:
        return self.block_hash in self.cache

    @property
    def names(self) -> list[bytes]:
        """Of the pages."""
        return [page_name(self.block_hash, self.first + index) for index in range(self.width)]

    def lock(self) -> Pages:
        return self.cache.lock(self.block_hash)

    def unlock(self) -> None:
        self.cache.unlock(self.block_hash, passed=False)

    def take_in(self, pages: Pages) -> Pages:
        """Cache pages that came from elsewhere. Returns them if the block is here already."""
        if self.is_here:
            return pages
        self.cache.add(self.block_hash, pages)
        self.unlock()
        return ()


def held_elsewhere(elsewhere: Elsewhere | None, first: int, width: int) -> Callable[[bytes], bool]:
    """Whether all pages of a block's `Entry` are there."""
    if not elsewhere:
        return lambda block_hash: False
    return lambda block_hash: all(page_name(block_hash, first + index) in elsewhere for index in range(width))


def of_caches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Those of each cache together, as they are given."""
    for _, of_cache in groupby(entries, lambda entry: entry.cache):
        yield list(of_cache)


def in_order(entries: Iterable[Entry], values: Callable[[Entry], Sequence[T]]) -> Iterator[T]:
    """What `values` says of each entry's pages, in the order of a handoff's pages: group after group."""
    for of_cache in of_caches(entries):
        for of_group in zip(*map(values, of_cache), strict=True):
            yield from of_group
