"""Pages of layers that attend to a part of their past: who has which, and which are given back on the way.

Beside its page table for full attention a request has one table per *band* (baton.engine.band_cache): of the blocks
that its next tokens attend to, and no others. What falls out of the window while it advances stays cached until
somebody needs the memory.

                 first          shared             end
    -- let go ----|--------------|------------------|-- promised, while the prompt is computed --
                  | the cache's, | the request's    |
                  | locked       | own              |

Before a prompt's first token its request is promised as many pages as it can ever need at once, though it takes them
chunk by chunk: it never waits on the way, whoever shares its blocks. So promised pages count as lent.

The ledger (baton.engine.ledger) is the only user; it evicts, and says what is free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from baton.core.errors import InternalError
from baton.core.layout import CHUNK, FULL, STATE, CacheGroup, KvLayout
from baton.engine.band_cache import BandCache, Elsewhere, Entry, Pages, held_elsewhere


class LivePages:
    """Page ids of consecutive blocks, [groups, blocks]: blocks are added at the end and go at the start."""

    __slots__ = ("_buffer", "_end", "_start")

    def __init__(self, groups: int) -> None:
        self._buffer = np.empty((groups, 0), dtype=np.int32)
        self._start = self._end = 0

    @property
    def view(self) -> npt.NDArray[Any]:
        """Valid until the next `extend`."""
        return self._buffer[:, self._start : self._end]

    def extend(self, pages: npt.NDArray[Any]) -> None:
        """`pages` is [groups, blocks]."""
        end = self._end + pages.shape[1]
        if end > self._buffer.shape[1]:
            live = self.view
            end -= self._start
            self._buffer = np.empty((len(pages), max(2 * end, 16)), dtype=np.int32)
            self._buffer[:, : live.shape[1]] = live
            self._start, self._end = 0, live.shape[1]
        self._buffer[:, self._end : end] = pages
        self._end = end

    def drop(self, blocks: int) -> None:
        self._start += blocks


@dataclass(slots=True, eq=False)
class BandTable:
    """A request's pages in one band; see the module's docstring. Blocks count from the request's first.

    Pages are promised for up to `most_blocks` at once, and up to block `until`. `behind`: the block that it went past
    last, if one needs it who goes on after the request's last whole block.
    """

    pages: LivePages
    first: int
    shared: int
    until: int
    most_blocks: int
    behind: bytes = b""
    table_revision: int = 0  # changes when an entry does, or `first`; not when some are added

    @property
    def blocks(self) -> int:
        return self.pages.view.shape[1]

    @property
    def end(self) -> int:
        return self.first + self.blocks

    @property
    def promised_blocks(self) -> int:
        return max(0, min(self.first + self.most_blocks, self.until) - self.end)


@dataclass(frozen=True, slots=True)
class Band:
    """One band of a model: `groups` are those of the layout, `rule` is any of them."""

    groups: range
    rule: CacheGroup

    @property
    def width(self) -> int:
        return len(self.groups)

    def most_blocks(self, step_tokens: int, page_size: int) -> int:
        """Blocks that a request needs at once at most, with `step_tokens` new tokens on their way."""
        return -(-(self.rule.size - 1 + step_tokens) // page_size) + 1


def bands_of(layout: KvLayout) -> list[Band]:
    """The layout's groups that attend to a part of their past, those of equal rule together."""
    found = []
    for (kind, _), members in groupby(enumerate(layout.groups), lambda each: (each[1].kind, each[1].size)):
        at = [index for index, _ in members]
        if kind not in (FULL, STATE):
            found.append(Band(range(at[0], at[-1] + 1), layout.groups[at[0]]))
    return found


class Bands:
    """All bands of a model that has any, and the tables of all requests. Not thread-safe.

    `step_tokens`: tokens of one prompt in steps that are planned or under way at the same time.
    """

    def __init__(
        self, layout: KvLayout, step_tokens: int, take: Callable[[int], list[int]], note: Callable[[bytes], None]
    ) -> None:
        """`take` finds pages; there must be so many. `note`: of the caches."""
        self._page_size = layout.page_size
        self._bands = bands_of(layout)
        self._caches = [BandCache(note) for _ in self._bands]
        self._most = [band.most_blocks(step_tokens, layout.page_size) for band in self._bands]
        self._take = take
        self._promised = 0
        self.passed_pages = 0  # that requests went past, in all

    @property
    def cached_pages(self) -> int:
        return sum(band.width * len(cache) for band, cache in self._each())

    @property
    def block_pages(self) -> int:
        """Pages of a block in all bands."""
        return sum(band.width for band in self._bands)

    @property
    def evictable_pages(self) -> int:
        return sum(band.width * cache.unused for band, cache in self._each())

    @property
    def spoken_for(self) -> int:
        """Pages that requests may still take, or would have to if those that they share were not there."""
        return self._promised + sum(band.width * cache.doubled for band, cache in self._each())

    def usable(self, hashes: Sequence[bytes], blocks: int, elsewhere: Elsewhere | None = None, first: int = 0) -> int:
        """The most of the first `blocks` blocks after which a request can go on. Pages that are `elsewhere` count as
        being here; `first`: as with `entries`."""
        found = -1
        while found != blocks:
            found, at = blocks, first
            for band, cache in self._each():
                has = held_elsewhere(elsewhere, at, band.width)
                blocks = cache.usable(hashes, blocks, lambda n, rule=band.rule: self._first(rule, n), has)  # type: ignore[misc]
                at += band.width
        return blocks

    def open(self, hashes: Sequence[bytes], blocks: int, until_tokens: int) -> list[BandTable]:
        """Tables of a request that goes on after `blocks` cached blocks, which are usable; pages are promised to it
        for its first `until_tokens` tokens."""
        tables = []
        for (band, cache), most in zip(self._each(), self._most, strict=True):
            first = self._first(band.rule, blocks)
            table = BandTable(LivePages(band.width), first, first, -(-until_tokens // self._page_size), most)
            if first < blocks:
                table.pages.extend(np.array([cache.lock(name) for name in hashes[first:blocks]], dtype=np.int32).T)
                table.shared = blocks
            self._promised += band.width * table.promised_blocks
            tables.append(table)
        return tables

    def open_tail(self, tokens: int) -> list[BandTable]:
        """As `open`, with own pages of all blocks that tokens after the first `tokens` attend to."""
        tables, until = [], -(-tokens // self._page_size)
        for band in self._bands:
            first = band.rule.first_block(tokens, self._page_size)
            tables.append(BandTable(LivePages(band.width), first, first, until, until - first))
            self._promised += band.width * tables[-1].promised_blocks
        return tables

    def cover(self, tables: list[BandTable], tokens: int) -> None:
        """See that there are pages for all of the first `tokens` tokens. The caller knows that there are so many."""
        end = -(-tokens // self._page_size)
        for band, table in zip(self._bands, tables, strict=True):
            if end <= table.end:
                continue
            new, promised = end - table.end, table.promised_blocks
            pages = self._take(new * band.width)
            table.pages.extend(np.array(pages, dtype=np.int32).reshape(band.width, new))
            self._promised += band.width * (table.promised_blocks - promised)

    def share(self, tables: list[BandTable], hashes: Sequence[bytes], end: int, *, replace: bool) -> list[int]:
        """Hand blocks before `end`, which are computed and in the radix cache, to the cache, still locked.

        Where a block is cached already the request uses that; its own pages are returned. Not `replace`: it keeps
        them, and shares nothing from there on.
        """
        freed: list[int] = []
        for cache, table in zip(self._caches, tables, strict=bool(tables)):
            view = table.pages.view
            for block in range(table.shared, min(end, table.end)):
                own = tuple(view[:, block - table.first].tolist())
                if hashes[block] not in cache:
                    cache.add(hashes[block], own)
                elif replace:
                    view[:, block - table.first] = cache.lock(hashes[block])
                    table.table_revision += 1
                    freed += own
                else:
                    break
                table.shared = block + 1
        return freed

    def slide(self, tables: list[BandTable], hashes: Sequence[bytes], tokens: int) -> list[int]:
        """Let go of what tokens after the first `tokens` do not attend to. Returns own pages that are free by that."""
        freed: list[int] = []
        for (band, cache), table in zip(self._each(), tables, strict=True):
            first = min(band.rule.first_block(tokens, self._page_size), table.end)
            if first <= table.first:
                continue
            promised, needed = table.promised_blocks, self._first(band.rule, tokens // self._page_size)
            self.passed_pages += band.width * (first - table.first)
            cache.pass_by(table.behind)
            for block in range(table.first, min(first, table.shared)):
                cache.unlock(hashes[block], passed=block < needed)
                table.behind = hashes[block]
            freed += table.pages.view[:, table.shared - table.first : first - table.first].ravel().tolist()
            table.pages.drop(first - table.first)
            table.first, table.shared = first, max(first, table.shared)
            table.table_revision += 1
            self._promised += band.width * (table.promised_blocks - promised)
        return freed

    def close(self, tables: list[BandTable], hashes: Sequence[bytes]) -> list[int]:
        """The request lets go of everything: returns its own pages, and empties `tables`."""
        freed: list[int] = []
        for (band, cache), table in zip(self._each(), tables, strict=bool(tables)):
            self._promised -= band.width * table.promised_blocks
            for name in hashes[table.first : table.shared]:
                cache.unlock(name, passed=False)
            freed += table.pages.view[:, table.shared - table.first :].ravel().tolist()
        tables.clear()
        return freed

    def entries(self, hashes: Sequence[bytes], blocks: int, first: int) -> Iterator[Entry]:
        """Of what the token after `blocks` blocks attends to, in the order of a handoff's pages. `first`: pages that a
        block has beside those here and before them."""
        for band, cache in self._each():
            for name in hashes[self._first(band.rule, blocks) : blocks]:
                yield Entry(cache, name, first, band.width)
            first += band.width

    def of_block(self, block_hash: bytes, first: int) -> Iterator[Entry]:
        """Entries of a block in all bands."""
        for band, cache in self._each():
            yield Entry(cache, block_hash, first, band.width)
            first += band.width

    def passed(self, first: int) -> Iterator[Entry]:
        """Of blocks that requests went past, oldest first, as long as the caller discards them."""
        for band, cache in self._each():
            while (block_hash := cache.oldest_passed) is not None:
                yield Entry(cache, block_hash, first, band.width)
            first += band.width

    def is_of_chunks(self, entry: Entry) -> bool:
        return any(entry.cache is cache and band.rule.kind == CHUNK for band, cache in self._each())

    def oldest_end(self) -> bytes | None:
        """Of the blocks that nobody uses, nor has gone past, that which waits longest."""
        return next((end for cache in self._caches if (end := cache.oldest_end) is not None), None)

    def discard(self, block_hash: bytes) -> Pages:
        """The pages of a block that leaves the radix cache, which nobody uses then."""
        return tuple(page for cache in self._caches for page in cache.discard(block_hash))

    def evict_passed(self, count: int) -> list[int]:
        """Up to about `count` pages of blocks that requests went past, oldest first."""
        return _until(count, self._caches, BandCache.evict_passed)

    def evict_ends(self, count: int) -> list[int]:
        """Up to about `count` pages of other blocks that nobody uses."""
        return _until(count, self._caches, BandCache.evict_end)

    def audit(
        self, holders: Iterable[tuple[list[BandTable], Sequence[bytes]]], locked: Collection[Entry] = ()
    ) -> Iterator[tuple[int, str]]:
        """Check promises and locks against the tables of all requests, and what is `locked` besides; all pages, each
        with its owner's name."""
        held = [each for each in holders if each[0]]
        promised = 0
        for at, (band, cache) in enumerate(self._each()):
            locks = Counter(entry.block_hash for entry in locked if entry.cache is cache)
            for tables, hashes in held:
                table = tables[at]
                locks.update(hashes[table.first : table.shared])
                promised += band.width * table.promised_blocks
                own = table.shared - table.first
                for block, name in enumerate(hashes[table.first : table.shared]):
                    if tuple(table.pages.view[:, block].tolist()) != cache.peek(name):
                        raise InternalError("a request uses other pages than those that it has locked")
                yield from ((page, "a request's band") for page in table.pages.view[:, own:].ravel().tolist())
            yield from ((page, "a band's cache") for pages in cache.audit(dict(locks)) for page in pages)
        if promised != self._promised:
            raise InternalError(f"{promised} pages are promised, {self._promised} were counted")

    def _each(self) -> Iterator[tuple[Band, BandCache]]:
        return zip(self._bands, self._caches, strict=True)

    def _first(self, rule: CacheGroup, blocks: int) -> int:
        return rule.first_block(blocks * self._page_size, self._page_size)


def _until(count: int, caches: Sequence[BandCache], evict: Callable[[BandCache], Pages]) -> list[int]:
    pages: list[int] = []
    for cache in caches:
        while len(pages) < count and (found := evict(cache)):
            pages += found
    return pages
