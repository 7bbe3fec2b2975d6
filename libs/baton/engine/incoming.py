"""Prefixes that come from elsewhere, into pages of the request that wants them: reserved, filled by somebody, cached.

While a request waits for that it has pages which stand for nothing yet: those of `RequestState.pages` after the cached
ones, and `arriving`. From another worker comes all of a prefix that is not held, in the order of a handoff's pages: of
full attention, then what the next token needs of layers with windows and states. How far the source got is known only
then, and so is which page is what. The tiers of the own agent have pages by name: only those are brought that are
lacking, of windows and states first, and the others are locked meanwhile.

The ledger (baton.engine.ledger) takes the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from baton.core.layout import CANARY_PAGE
from baton.engine.band_cache import Entry, in_order, of_caches
from baton.engine.bounded import BoundedPages
from baton.engine.radix import RadixCache
from baton.engine.request import RequestState


@dataclass(frozen=True, slots=True)
class Plan:
    """The request has `held` blocks locked in the radix cache, and could use `usable` ones as it is; `blocks` are to be
    there, of which `lacking` and `here` are the entries beside that cache, where the tiers fill them."""

    usable: int
    held: int
    blocks: int
    from_tier: bool = False
    lacking: list[Entry] = field(default_factory=list)
    here: list[Entry] = field(default_factory=list)


class Incoming:
    """What requests pull and restore. Not thread-safe."""

    def __init__(self, cache: RadixCache, bounded: BoundedPages, free: Callable[[list[int]], None]) -> None:
        """`bounded`: what blocks have beside their pages in `cache`. `free` takes pages that nobody needs any more."""
        self._cache = cache
        self._bounded = bounded
        self._free = free

    def restorable(self, request: RequestState, usable: int) -> int:
        """Leading blocks, `usable` at least, after which the request could go on with what is here and in the tiers."""
        if not self._cache.elsewhere:
            return usable
        end = min(request.cacheable_blocks, len(request.hashes))
        if self._bounded.has_full:
            end = self._cache.match_elsewhere(request.hashes, request.hint_blocks, end)
        return max(usable, self._bounded.usable(request.hashes, end, self._cache.elsewhere))

    def plan(self, request: RequestState, usable: int, blocks: int) -> Plan:
        """How the first `blocks` blocks come to a request that finds `usable` ones; 0: nothing is to come."""
        if not blocks or self.restorable(request, usable) < blocks:
            return Plan(usable, usable, blocks)
        entries = self._bounded.entries(request.hashes, blocks)
        lacking, here = ([entry for entry in entries if entry.is_here is held] for held in (False, True))
        return Plan(usable, min(request.hint_blocks, blocks), blocks, True, lacking, here)

    def extra_pages(self, plan: Plan, fresh: int) -> int:
        """Pages for what comes, beside those of the `fresh` blocks that the request lacks anyway."""
        if plan.from_tier:
            return sum(entry.width for entry in plan.lacking)
        if not plan.blocks:
            return 0
        full = (plan.blocks - plan.held - fresh) * self._bounded.has_full
        return max(0, full + self._bounded.pages_after(plan.blocks))

    def keep(self, request: RequestState, plan: Plan) -> None:
        """Lock what is here of the prefix, but for the pages of full attention, until `let_go` or `arrived`."""
        for entry in plan.here:
            entry.lock()
        request.kept = plan.here

    def begin(self, request: RequestState, plan: Plan, extra: list[int]) -> None:
        """The request waits for what comes, if anything does; it has `extra` pages for that."""
        request.arriving, request.lacking = extra, plan.lacking
        request.pull_blocks, request.from_tier, request.usable_blocks = plan.blocks, plan.from_tier, plan.usable

    def to_fill(self, request: RequestState) -> list[int]:
        """The pages of what the request pulls, in their order."""
        held, blocks = request.held_blocks, request.pull_blocks
        beside = len(request.arriving) if request.from_tier else self._bounded.pages_after(blocks)
        return self.own(request)[: (blocks - held) * self._bounded.has_full + beside]

    def names(self, request: RequestState) -> list[bytes]:
        """Of the blocks that the request pulls, or of the pages that it has brought from the tiers."""
        blocks = request.hashes[request.held_blocks : request.pull_blocks]
        if not request.from_tier:
            return blocks
        return [*in_order(request.lacking, lambda entry: entry.names), *(blocks if self._bounded.has_full else [])]

    def own(self, request: RequestState) -> list[int]:
        """All pages of the request itself but those of windows and states."""
        full = request.pages.view[request.held_blocks :].tolist() if self._bounded.has_full else []
        return [*full, *request.arriving]

    def arrived(self, request: RequestState, blocks: int) -> None:
        """So many leading blocks are there, and nobody writes into the request's pages any more: what came belongs to
        the cache, under the request's lock, and the other pages to nobody."""
        pages = iter(self.own(request))
        if request.from_tier and blocks == request.pull_blocks:
            self._take_in(request.lacking, pages)
        if request.held_blocks < blocks:
            self._insert(request, blocks, pages)
            if not request.from_tier:
                self._take_in(self._bounded.entries(request.hashes, blocks), pages)
        request.pages.clear()
        request.arriving = []
        self.let_go(request)
        self._free(list(pages))

    def let_go(self, request: RequestState) -> None:
        """Nothing comes any more."""
        for entry in request.kept:
            entry.unlock()
        request.lacking, request.kept = [], []

    def _insert(self, request: RequestState, blocks: int, pages: Iterator[int]) -> None:
        if request.node is None:
            return
        has_full, count = self._bounded.has_full, blocks - request.held_blocks
        own = list(islice(pages, count)) if has_full else [CANARY_PAGE] * count
        insertion = self._cache.insert(request.node, request.hashes[request.held_blocks : blocks], own)
        request.node, request.held_blocks = insertion.node, blocks
        if has_full:
            self._free([own[index] for index, _ in insertion.duplicates])

    def _take_in(self, entries: list[Entry], pages: Iterator[int]) -> None:
        for of_cache in of_caches(entries):
            of_groups = [[next(pages) for _ in of_cache] for _ in range(of_cache[0].width)]
            for entry, own in zip(of_cache, zip(*of_groups, strict=True), strict=True):
                self._free(list(entry.take_in(own)))
