"""States of layers that keep one of constant size per request (short convolutions, Mamba2, gated delta rules).

A step reads the state after its row's first token's predecessor and writes that after its last. Where it may, it writes
over what it has read. It may not where that is *kept*: as a snapshot after a whole block, which others can go on from.

      0 tokens         16 kept        32 kept        37             38
      .  ── chunk ──> [a b] ──chunk──> [c d] ──chunk──> [e f] ─token─> [e f] ─token─> ...

So nothing is ever copied: a snapshot is a state that was not written over, and a request that finds one reads it where
it is. Snapshots belong to a cache (baton.engine.band_cache) by the hash of their last block; the pages of all groups
of layers together are one entry. A prefix can be reused as far as one of its blocks has a snapshot, and no further.

A request is promised the pages of its next write as long as that cannot go over what it reads. Whether a state is kept
is decided when the step that makes it is planned, and pages are there for the write after it.

Of the snapshots that a request leaves behind the last is where its conversation goes on: the others are the first to be
evicted. A state that was handed over is one too, if the prompt was of whole blocks.

The ledger (baton.engine.ledger) is the only user; it evicts, and says what is free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from baton.core.errors import InternalError
from baton.core.layout import STATE, KvLayout
from baton.engine.band_cache import BandCache, Elsewhere, Entry, Pages, held_elsewhere

SNAPSHOT_BLOCKS = 16  # between snapshots while tokens are drawn


@dataclass(slots=True, eq=False)
class Version:
    """A request's state after its first `tokens` tokens. `kept`: no step writes over it. `shared`: the cache's, under
    the request's lock; else the request's own."""

    tokens: int
    pages: Pages  # of group after group
    kept: bool = False
    shared: bool = False


@dataclass(slots=True, eq=False)
class StateTable:
    """A request's states, oldest first: at most one that steps under way have not left behind per such step.

    `source` and `target` are the pages that the step planned last reads (none: it begins with the request) and writes.
    `behind`: the snapshot that it has let go of last.
    """

    versions: list[Version] = field(default_factory=list)
    source: Pages = ()
    target: Pages = ()
    behind: bytes = b""

    @property
    def promised(self) -> bool:
        """Whether the next step needs pages to write to."""
        return not self.versions or self.versions[-1].kept


@dataclass(slots=True)
class SnapshotCounts:
    """Snapshots that were made in all, that requests went on from, and that were evicted."""

    made: int = 0
    reused: int = 0
    evicted: int = 0


class States:
    """The states of all requests, and the snapshots. Not thread-safe."""

    def __init__(
        self,
        layout: KvLayout,
        take: Callable[[int], list[int]],
        note: Callable[[bytes], None] = lambda block_hash: None,
    ) -> None:
        """`take` finds pages; there must be so many. `note`: of the cache."""
        self._page_size = layout.page_size
        self._cache = BandCache(note)
        self._take = take
        self._promised = 0  # requests that are
        self.width = state_pages(layout)
        self.counts = SnapshotCounts()

    @property
    def cached(self) -> int:
        """Snapshots that are cached."""
        return len(self._cache)

    @property
    def evictable_pages(self) -> int:
        return self.width * self._cache.unused

    @property
    def spoken_for(self) -> int:
        """Pages that requests may still take, or would have to if those that they share were not there."""
        return self.width * (self._promised + self._cache.doubled)

    def usable(self, hashes: Sequence[bytes], blocks: int, elsewhere: Elsewhere | None = None, first: int = 0) -> int:
        """The most of the first `blocks` blocks after which there is a snapshot, or one is `elsewhere`. `first`: as
        with `entries`."""
        return self._cache.usable(hashes, blocks, lambda n: max(0, n - 1), held_elsewhere(elsewhere, first, self.width))

    def open(self, hashes: Sequence[bytes], blocks: int) -> StateTable:
        """The table of a request that goes on after `blocks` cached blocks, the last of which has a snapshot."""
        table = StateTable()
        if blocks:
            pages = self._cache.lock(hashes[blocks - 1])
            table.versions.append(Version(blocks * self._page_size, pages, kept=True, shared=True))
            self.counts.reused += 1
        self._promised += 1
        return table

    def receive(self, table: StateTable, tokens: int) -> None:
        """Own pages for a state after `tokens` tokens that comes from elsewhere."""
        table.versions = [Version(tokens, tuple(self._take(self.width)))]
        self._promised -= 1

    def wants_snapshot(self, start: int, end: int) -> bool:
        """Whether the state that a step of tokens `start:end` ends with is worth keeping."""
        blocks, rest = divmod(end, self._page_size)
        return not rest and (end - start > 1 or blocks % SNAPSHOT_BLOCKS == 0)

    def advance(self, table: StateTable, start: int, end: int) -> None:
        """A step computes tokens `start:end`."""
        last = table.versions[-1] if table.versions else None
        if start != (last.tokens if last is not None else 0):
            raise InternalError(f"a step begins with token {start}, the state is another's")
        table.source = last.pages if last is not None else ()
        if last is None or last.kept:
            last = Version(end, tuple(self._take(self.width)))
            table.versions.append(last)
            self._promised -= 1
        last.tokens, table.target = end, last.pages

    def keep(self, table: StateTable) -> None:
        """No step is to write over what the one planned last writes. The caller knows that there are pages for that."""
        table.versions[-1].kept = True
        self._promised += 1

    def share(self, table: StateTable, hashes: Sequence[bytes], held_blocks: int) -> None:
        """Hand kept states after computed blocks, `held_blocks` of which are in the radix cache, to the cache."""
        for version in table.versions:
            blocks = version.tokens // self._page_size
            if version.kept and not version.shared and blocks <= held_blocks and hashes[blocks - 1] not in self._cache:
                self._cache.add(hashes[blocks - 1], version.pages)
                version.shared = True
                self.counts.made += 1

    def slide(self, table: StateTable, hashes: Sequence[bytes], tokens: int) -> list[int]:
        """Let go of states before the one after `tokens` tokens. Returns own pages that are free by that."""
        freed: list[int] = []
        while table.versions[0].tokens < tokens:
            freed += self._let_go(table, table.versions.pop(0), hashes)
        return freed

    def close(self, table: StateTable, hashes: Sequence[bytes]) -> list[int]:
        """The request lets go of everything; returns its own pages."""
        self._promised -= table.promised
        freed = [page for version in table.versions for page in self._let_go(table, version, hashes)]
        table.versions = []
        return freed

    def entries(self, hashes: Sequence[bytes], blocks: int, first: int) -> Iterator[Entry]:
        """That of the state after `blocks` blocks. `first`: pages that a block has before those of a state."""
        if blocks:
            yield from self.of_block(hashes[blocks - 1], first)

    def of_block(self, block_hash: bytes, first: int) -> Iterator[Entry]:
        """The same, by the last block."""
        yield Entry(self._cache, block_hash, first, self.width)

    def passed(self, first: int) -> Iterator[Entry]:
        """Of snapshots that requests went past, oldest first, as long as the caller discards them."""
        while (block_hash := self._cache.oldest_passed) is not None:
            yield Entry(self._cache, block_hash, first, self.width)

    def oldest_end(self) -> bytes | None:
        """Of the snapshots that nobody uses, nor has gone past, that which waits longest."""
        return self._cache.oldest_end

    def discard(self, block_hash: bytes) -> Pages:
        """The pages of the snapshot of a block that leaves the radix cache, which nobody uses then."""
        pages = self._cache.discard(block_hash)
        self.counts.evicted += bool(pages)
        return pages

    def evict_passed(self, count: int) -> list[int]:
        """Up to about `count` pages of snapshots that requests went past, oldest first."""
        return self._until(count, self._cache.evict_passed)

    def evict_ends(self, count: int) -> list[int]:
        """Up to about `count` pages of other snapshots that nobody uses."""
        return self._until(count, self._cache.evict_end)

    def audit(
        self, holders: Iterable[tuple[StateTable, Sequence[bytes]]], locked: Collection[Entry] = ()
    ) -> Iterator[tuple[int, str]]:
        """Check promises and locks against the tables of all requests, and what is `locked` besides; all pages, each
        with its owner's name."""
        locks = Counter(entry.block_hash for entry in locked if entry.cache is self._cache)
        promised = 0
        for table, hashes in holders:
            promised += table.promised
            for version in table.versions:
                if not version.shared:
                    yield from ((page, "a request's state") for page in version.pages)
                    continue
                name = self._name(version, hashes)
                locks[name] += 1
                if self._cache.peek(name) != version.pages:
                    raise InternalError("a request reads another state than that it has locked")
        yield from ((page, "a snapshot") for pages in self._cache.audit(dict(locks)) for page in pages)
        if promised != self._promised:
            raise InternalError(f"states are promised to {promised} requests, {self._promised} were counted")

    def _name(self, version: Version, hashes: Sequence[bytes]) -> bytes:
        return hashes[version.tokens // self._page_size - 1]

    def _let_go(self, table: StateTable, version: Version, hashes: Sequence[bytes]) -> Pages:
        if not version.shared:
            return version.pages
        name = self._name(version, hashes)
        self._cache.unlock(name, passed=False)
        self._cache.pass_by(table.behind)
        table.behind = name
        return ()

    def _until(self, count: int, evict: Callable[[], Pages]) -> list[int]:
        pages: list[int] = []
        while len(pages) < count and (found := evict()):
            pages += found
            self.counts.evicted += 1
        return pages


def state_pages(layout: KvLayout) -> int:
    """Pages of a state, of all groups together."""
    return sum(group.size for group in layout.groups if group.kind == STATE)
