"""Pages of layers that need no more than so many for a request, however long it gets: windows, chunks and states.

Beside the pages of full attention, which grow with a request, it may have those of bands (baton.engine.bands) and of
states (baton.engine.states), with cached blocks of their own for each. Here they are one: what a request may still take
of either is promised to it, a prefix can be reused where both have what comes next, and blocks go from both.

The ledger (baton.engine.ledger) is the only user; it says what is free, and when to evict. Of models whose layers all
see everything there is nothing here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from baton.core.layout import STATE, WINDOW, KvLayout
from baton.core.tiers import Tier
from baton.engine.api import BoundedCounts, Stage
from baton.engine.band_cache import Elsewhere, Entry
from baton.engine.bands import Bands, bands_of
from baton.engine.request import RequestState
from baton.engine.states import SnapshotCounts, States, state_pages

UNLIMITED = 1 << 30  # blocks: where nothing is kept for ever, pages set no limit


def pages_needed(layout: KvLayout, blocks: int, step_tokens: int) -> int:
    """Pages of a request of so many blocks that is alone, with `step_tokens` new tokens on their way."""
    bands = [band.width * min(blocks, band.most_blocks(step_tokens, layout.page_size)) for band in bands_of(layout)]
    states = 2 * state_pages(layout)  # that which it goes on from, and its own
    return states + sum(bands) + blocks * layout.has_full


def most_blocks(layout: KvLayout, pages: int, step_tokens: int) -> int:
    """Blocks of the longest request that `pages` are enough for."""
    limit = pages + 1 if layout.has_full else UNLIMITED
    return max(0, bisect_right(range(limit), pages, key=lambda blocks: pages_needed(layout, blocks, step_tokens)) - 1)


class BoundedPages:
    """Those of all requests, and the cached ones. Not thread-safe. Empty, and false, where a model has no such layers.

    Pages that its methods return are nobody's any more.
    """

    def __init__(
        self,
        layout: KvLayout | None,
        step_tokens: int,
        take: Callable[[int], list[int]],
        spare: Callable[[], int],
        note: Callable[[bytes], None],
    ) -> None:
        """`take` finds pages, of which there must be so many; `spare` counts those that are promised to nobody.
        `step_tokens`: tokens of one prompt in steps that are planned or under way at the same time. `note` hears of a
        block before it gets cached pages here, and before they go."""
        self._bands = Bands(layout, step_tokens, take, note) if layout is not None and bands_of(layout) else None
        self._states = States(layout, take, note) if layout is not None and state_pages(layout) else None
        self._parts: list[Bands | States] = [part for part in (self._bands, self._states) if part is not None]
        self._layout = layout
        self._spare = spare
        self.has_full = layout is None or layout.has_full  # whether each block has a page beside those here

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def keeps_states(self) -> bool:
        """Whether a prefix can be reused after some of its blocks only: where a step has ended."""
        return self._states is not None

    @property
    def snapshots(self) -> SnapshotCounts | None:
        """None: the model keeps no states."""
        return self._states.counts if self._states is not None else None

    @property
    def counts(self) -> BoundedCounts:
        """Since the start."""
        passed, of = self._bands.passed_pages if self._bands is not None else 0, self.snapshots or SnapshotCounts()
        return BoundedCounts(passed, of.made, of.reused, of.evicted)

    @property
    def cached_pages(self) -> dict[str, int]:
        """By kind of layers."""
        found = {} if self._bands is None else {WINDOW: self._bands.cached_pages}
        return found if self._states is None else found | {STATE: self._states.cached * self._states.width}

    @property
    def cached_snapshots(self) -> int:
        return self._states.cached if self._states is not None else 0

    @property
    def block_pages(self) -> int:
        """Pages that one more block of a request takes."""
        return self._bands.block_pages if self._bands is not None else 0

    @property
    def evictable_pages(self) -> int:
        return sum([part.evictable_pages for part in self._parts])

    @property
    def spoken_for(self) -> int:
        """Pages that requests may still take, or would have to if those that they share were not there."""
        return sum([part.spoken_for for part in self._parts])

    def usable(self, hashes: Sequence[bytes], blocks: int, elsewhere: Elsewhere | None = None) -> int:
        """The most of the first `blocks` blocks after which a request can go on. Pages that are `elsewhere` count as
        being here."""
        found = -1
        while found != blocks:
            found = blocks
            for part, first in self._each():
                blocks = part.usable(hashes, blocks, elsewhere, first)
        return blocks

    def open(self, request: RequestState, blocks: int) -> None:
        """The request goes on after `blocks` cached blocks, which are usable; or, a FETCH, after all of its tokens."""
        fetches, tokens = request.stage is Stage.FETCH, len(request.tokens)
        if self._bands is not None:
            bands = self._bands
            request.bands = bands.open_tail(tokens) if fetches else bands.open(request.hashes, blocks, tokens)
        if self._states is not None:
            request.state = self._states.open(request.hashes, 0 if fetches else blocks)

    def pages_after(self, blocks: int) -> int:
        """Pages that the token after so many blocks needs."""
        if self._layout is None:
            return 0
        return self._layout.pages_for(blocks * self._layout.page_size) - blocks * self.has_full

    def entries(self, hashes: Sequence[bytes], blocks: int) -> list[Entry]:
        """Of what the token after `blocks` blocks needs, in the order of a handoff's pages."""
        return [entry for part, first in self._each() for entry in part.entries(hashes, blocks, first)]

    def tier(self, block_hash: bytes, elsewhere: Elsewhere) -> Tier | None:
        """The farthest place that some of a block's pages must be brought from. None: one is nowhere. Those of chunks
        do not count, see KvLayout.first_needed."""
        farthest: Tier | None = Tier.POOL
        for entry in self._of_block(block_hash):
            if self._bands is not None and self._bands.is_of_chunks(entry):
                continue
            tiers = [Tier.POOL] if entry.is_here else [elsewhere.get(name) for name in entry.names]
            if None in tiers:
                return None
            farthest = max(farthest, *tiers)
        return farthest

    def leave(self, block_hash: bytes) -> list[tuple[bytes, int]]:
        """As `discard`, with the name of each page; what somebody uses stays, which may be where blocks have no other
        pages."""
        named: list[tuple[bytes, int]] = []
        for entry in self._of_block(block_hash):
            if entry.is_here and not entry.cache.is_used(block_hash):
                named += zip(entry.names, entry.cache.discard(block_hash), strict=True)
        return named

    def leave_passed(self, count: int) -> tuple[list[tuple[bytes, int]], list[int]]:
        """As `evict_passed`: of what others have gone on from the pages with their names, and the other pages."""
        named: list[tuple[bytes, int]] = []
        rest: list[int] = []
        for part, first in self._each():
            for entry in part.passed(first):
                if len(named) + len(rest) >= count:
                    break
                is_reused, names = entry.cache.is_reused(entry.block_hash), entry.names
                pages = entry.cache.discard(entry.block_hash)
                if is_reused:
                    named += zip(names, pages, strict=True)
                else:
                    rest += pages
        return named, rest

    def oldest_end(self) -> bytes | None:
        """A block to evict when there are no others; see Bands.oldest_end."""
        return next((end for part in self._parts if (end := part.oldest_end()) is not None), None)

    def receive(self, request: RequestState) -> None:
        """Own pages for what comes from elsewhere: all that a FETCH needs after its tokens."""
        tokens = len(request.tokens)
        self.cover(request, tokens)
        if self._states is not None and request.state is not None:
            self._states.receive(request.state, tokens)
            self._keep(request, 0, tokens)

    def received(self, request: RequestState) -> Iterator[int]:
        """These pages, in the order of a handoff's pages."""
        for table in request.bands:
            yield from table.pages.view.ravel().tolist()
        if request.state is not None:
            yield from request.state.versions[-1].pages

    def cover(self, request: RequestState, tokens: int) -> None:
        """See that there are pages for the request's first `tokens` tokens, as it was promised."""
        if self._bands is not None:
            self._bands.cover(request.bands, tokens)

    def advance(self, request: RequestState, start: int, end: int) -> None:
        """A step that computes tokens `start:end` is planned: it gets a state to read, and one to write."""
        if self._states is not None and request.state is not None:
            self._states.advance(request.state, start, end)
            self._keep(request, start, end)

    def _keep(self, request: RequestState, start: int, end: int) -> None:
        """Keep the state after tokens `start:end` where it is worth it, and pages are there for the next."""
        states, table = self._states, request.state
        if states is None or table is None or not states.wants_snapshot(start, end):
            return
        if self._spare() >= states.width:
            states.keep(table)

    def share(self, request: RequestState, blocks: int, *, replace: bool) -> list[int]:
        """Hand what is computed of the first `blocks` blocks to the cache; see Bands.share."""
        freed = self._bands.share(request.bands, request.hashes, blocks, replace=replace) if self._bands else []
        if self._states is not None and request.state is not None:
            self._states.share(request.state, request.hashes, blocks)
        return freed

    def slide(self, request: RequestState) -> list[int]:
        """Let go of what no token after the computed ones needs. No step under way touches it."""
        freed: list[int] = []
        if self._bands is not None and request.bands:
            freed += self._bands.slide(request.bands, request.hashes, request.computed_len)
        if self._states is not None and request.state is not None:
            freed += self._states.slide(request.state, request.hashes, request.computed_len)
        return freed

    def close(self, request: RequestState) -> list[int]:
        """The request lets go of everything."""
        freed: list[int] = []
        if self._bands is not None:
            freed += self._bands.close(request.bands, request.hashes)
        if self._states is not None and request.state is not None:
            freed += self._states.close(request.state, request.hashes)
            request.state = None
        return freed

    def discard(self, block_hash: bytes) -> list[int]:
        """The pages of a block that leaves the radix cache, which nobody uses then."""
        return [page for part in self._parts for page in part.discard(block_hash)]

    def evict_passed(self, count: int) -> list[int]:
        """Up to about `count` pages of blocks that requests went past, oldest first."""
        return self._evict(count, [part.evict_passed for part in self._parts])

    def evict_ends(self, count: int) -> list[int]:
        """Up to about `count` pages of other blocks that nobody uses."""
        return self._evict(count, [part.evict_ends for part in self._parts])

    def audit(self, requests: Sequence[RequestState], lent: Iterable[Entry]) -> Iterator[tuple[int, str]]:
        """Check against all requests, and all that is lent; all pages, each with its owner's name."""
        locked = [*lent, *(entry for request in requests for entry in request.kept)]
        if self._bands is not None:
            yield from self._bands.audit(((request.bands, request.hashes) for request in requests), locked)
        if self._states is not None:
            held = [(request.state, request.hashes) for request in requests if request.state is not None]
            yield from self._states.audit(held, locked)

    def _each(self) -> Iterator[tuple[Bands | States, int]]:
        """With the number of pages that a block has before those of the part."""
        first = int(self.has_full)
        for part in self._parts:
            yield part, first
            first += part.block_pages if isinstance(part, Bands) else part.width

    def _of_block(self, block_hash: bytes) -> Iterator[Entry]:
        return (entry for part, first in self._each() for entry in part.of_block(block_hash, first))

    def _evict(self, count: int, ways: Iterable[Callable[[int], list[int]]]) -> list[int]:
        pages: list[int] = []
        for evict in ways:
            pages += evict(count - len(pages))
        return pages
