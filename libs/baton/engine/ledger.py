"""The ledger of pages: which are free, which the radix cache owns, which a request owns.

Every lent page has exactly one owner at any time, the cache or one request; this module is the only one that moves
pages between them, so it is where leaks and double use would be made, and where `audit` looks for them.
A page that is given up while a step is under way may still be read or written by that step: it stays in limbo, free for
nobody, until the step has ended. Models whose layers do not all see the same have pages of several kinds here, in one
budget: those of full attention as described, the others in `BoundedPages` (baton.engine.bounded), whose cached blocks
are always cached here too. Knows no tensors and no order of requests.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from baton.core.errors import InternalError
from baton.core.layout import CANARY_PAGE, FULL, KvLayout
from baton.core.tiers import Tier
from baton.engine.api import Stage
from baton.engine.bounded import BoundedPages, most_blocks
from baton.engine.incoming import Incoming
from baton.engine.outgoing import Outgoing
from baton.engine.owners import Owners, check_prefix
from baton.engine.pool import PageAllocator
from baton.engine.radix import Node, RadixCache
from baton.engine.request import RequestState

# Blocks in the tree where they have no page of their own: so many per page of the pool, or so many in all.
BARE_BLOCKS, LEAST_BARE_BLOCKS = 4, 1 << 16


class PageLedger:
    """Moves pages between the allocator, the radix cache and requests. Not thread-safe.

    Where no layer sees everything, the radix cache's page of each block is page 0.
    """

    def __init__(
        self, allocator: PageAllocator, page_size: int, layout: KvLayout | None = None, step_tokens: int = 0
    ) -> None:
        """`layout`: of models with groups of layers. `step_tokens`: tokens of one prompt that are planned or under way
        at the same time, at most. `most_blocks` are those of the longest request that the pool is enough for."""
        self.allocator = allocator
        self.cache = RadixCache(lambda *block: self.bounded.tier(*block))
        self.page_size = page_size
        self.bounded = BoundedPages(layout, step_tokens, self._take, lambda: self.available_pages, self.cache.note)
        self.most_blocks = allocator.usable if layout is None else most_blocks(layout, allocator.usable, step_tokens)
        self.incoming = Incoming(self.cache, self.bounded, self._free)
        self.outgoing = Outgoing(allocator, self.cache, self.bounded, self._free, page_size)
        self._has_full = layout is None or layout.has_full
        self._limbo: deque[list[int]] = deque()  # per step under way, oldest first: pages given up since it departed

    def depart(self) -> None:
        """A step with the pages of its rows is under way."""
        self._limbo.append([])

    def land(self) -> None:
        """The oldest step under way has ended: nothing of it touches a page any more."""
        self.allocator.free(self._limbo.popleft())

    @property
    def available_pages(self) -> int:
        """Free now, or after eviction, and promised to nobody."""
        return self.allocator.free_pages + self.evictable_pages - self.bounded.spoken_for

    @property
    def awaits_limbo(self) -> bool:
        """Whether pages are promised that a step under way may still touch: a request used cached pages, which nobody
        else did, in place of its own, and these are free when the step has ended."""
        return self.available_pages < 0

    @property
    def evictable_pages(self) -> int:
        """Cached pages that nobody uses."""
        return self.cache.evictable_pages * self._has_full + self.bounded.evictable_pages

    @property
    def cached_pages(self) -> dict[str, int]:
        """Pages of the prefix cache, whether somebody uses them or not, by kind of layers."""
        return {FULL: self.cache.cached_pages * self._has_full, **self.bounded.cached_pages}

    @property
    def block_pages(self) -> int:
        """Pages that one more block of a request takes."""
        return self._has_full + self.bounded.block_pages

    @property
    def keeps_states(self) -> bool:
        """Whether a prefix can be reused after some of its blocks only: where a step has ended."""
        return self.bounded.keeps_states

    @property
    def lent_pages(self) -> int:
        """Held by requests or in limbo; cached pages that no request uses are not counted."""
        return self.allocator.usable - self.available_pages

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def cached_blocks(self, request: RequestState) -> int:
        """Leading blocks that the request would find in the cache now."""
        request.hint_blocks = self.cache.match(request.hashes, request.cacheable_blocks, request.hint_blocks)
        if request.stage is Stage.FETCH:  # what else it needs comes with its handoff
            return request.hint_blocks
        return self.bounded.usable(request.hashes, request.hint_blocks)

    def lacking_blocks(self, request: RequestState) -> int:
        """Leading blocks that the request is to pull or restore, counted to the end of that; 0 when it needs none."""
        if request.pull_tried:
            return 0
        wanted = min(request.pull_blocks, request.cacheable_blocks)
        if request.stage is not Stage.FETCH:  # whose pages come with its handoff anyway
            wanted = max(wanted, self.restorable_blocks(request))
        return wanted if wanted > self.cached_blocks(request) else 0

    def restorable_blocks(self, request: RequestState) -> int:
        """Leading blocks that the request would find in the cache and the host tier together, as far as is known."""
        return self.incoming.restorable(request, self.cached_blocks(request))

    def tiers(self, block_hashes: Sequence[bytes]) -> list[Tier]:
        """Where the agent should have each of the blocks."""
        return [self.cache.elsewhere.get(block_hash, Tier.HOST) for block_hash in block_hashes]

    def reserve(self, request: RequestState, headroom: int) -> bool:
        """Give a request that has no pages the cached prefix and fresh pages for the rest of its tokens.

        False, and nothing changed, when that would leave fewer than `headroom` pages available to others.
        """
        plan = self.incoming.plan(request, self.cached_blocks(request), self.lacking_blocks(request))
        fresh = self.pages_for(len(request.tokens)) - plan.held
        extra = self.incoming.extra_pages(plan, fresh)
        wanted = fresh * self._has_full + extra + headroom * self.block_pages
        if wanted > self.available_pages:
            return False
        node, cached = self.cache.acquire(request.hashes, plan.held)
        self.incoming.keep(request, plan)
        if not plan.blocks:
            self.bounded.open(request, plan.held)
        if wanted > self.available_pages:  # the prefix itself was part of what seemed available
            self._free(self.bounded.close(request))
            self.incoming.let_go(request)
            self.cache.release(node)
            return False
        request.node = node
        request.held_blocks = plan.held
        request.pages.extend(cached)
        request.pages.extend(self._take_full(fresh))
        self.incoming.begin(request, plan, self._take(extra))
        if request.stage is Stage.FETCH and not plan.blocks:
            self.bounded.receive(request)
        return True

    def reserved(self, request: RequestState) -> tuple[int, list[int]]:
        """What somebody is to fill for a request that has just got its pages, in the order of a handoff's pages: the
        place of the first, and all from there on, or those of what it pulls."""
        first = request.held_blocks * self._has_full
        if request.pull_blocks:
            return first, self.incoming.to_fill(request)
        return first, [*self.incoming.own(request), *self.bounded.received(request)]

    def grow(self, request: RequestState) -> bool:
        """See that there is a page for each of the request's tokens. False: too few, and it keeps what it got."""
        while request.planned_tokens > len(request.pages) * self.page_size:
            if self.available_pages < self.block_pages:
                return False
            request.pages.append(self._take_full(1)[0])
            self.cover(request, len(request.pages) * self.page_size)
        return True

    def cover(self, request: RequestState, tokens: int) -> None:
        """See that there are pages for the request's first `tokens` tokens in all layers, as it was promised."""
        self.bounded.cover(request, tokens)

    def advance(self, request: RequestState, start: int, end: int) -> None:
        """A step that computes tokens `start:end` is planned."""
        self.bounded.advance(request, start, end)

    def slide(self, request: RequestState) -> None:
        """Let go of pages that no token after the computed ones needs. No step under way touches them."""
        self.allocator.free(self.bounded.slide(request))

    def publish(self, request: RequestState, *, unlease: bool = False) -> None:
        """Hand the request's computed full blocks to the cache, still under its lock.

        A page that duplicates a cached one is freed and replaced in the page table. An announced page cannot be
        replaced while it may be read elsewhere: then nothing more is published until `unlease` says that nobody reads.
        """
        may_replace, end = unlease or not request.announced, request.computed_len // self.page_size
        if request.held_blocks < end and request.node is not None:
            self._insert(request, request.node, end, may_replace)
        if self.bounded:
            self._free(self.bounded.share(request, min(request.held_blocks, end), replace=may_replace))

    def _insert(self, request: RequestState, node: Node, end: int, may_replace: bool) -> None:
        """Hand blocks before `end` to the radix cache, whose pages replace those that are there already."""
        start = request.held_blocks
        if not may_replace:
            request.sealed = request.sealed or request.hashes[start] in self.cache
            if request.sealed:
                return
        table = request.pages.view
        own = table[start:end].tolist()
        insertion = self.cache.insert(node, request.hashes[start:end], own)
        for index, page in insertion.duplicates:
            table[start + index] = page
        if insertion.duplicates:
            request.table_revision += 1
            self._free_full([own[index] for index, _ in insertion.duplicates])
        request.node, request.held_blocks = insertion.node, end

    def vacate(self, request: RequestState) -> None:
        """Take all pages from the request: what the cache owns stays cached, the rest is free, or in limbo."""
        if request.node is None:
            return
        self._free(self.bounded.close(request))
        self._free(self.incoming.own(request))
        self.incoming.let_go(request)
        self.cache.release(request.node)
        request.pages.clear()
        request.arriving = []
        request.table_revision += 1
        request.node, request.held_blocks, request.sealed = None, 0, False
        request.computed_len = request.planned_len = 0

    def audit(self, requests: Iterable[RequestState]) -> None:
        """Raise InternalError unless every page is accounted for once. Walks everything: for tests."""
        requests = list(requests)
        locks: Counter[Node] = Counter(self.outgoing.locked)
        owners = Owners()
        owners.add_each(self.bounded.audit(requests, self.outgoing.lent))
        for request in requests:
            if request.node is not None:
                locks[request.node] += 1
                check_prefix(request)
                owners.add(self.incoming.own(request), f"attempt {request.attempt}")
        owners.add((page for pages in self._limbo for page in pages), "a step under way")
        owners.add(self.outgoing.moving_pages, "the host tier's copier")
        cached = self.cache.audit(locks)
        owners.add(cached if self._has_full else (), "the cache")
        owners.check(self.allocator)
        available = self.available_pages + sum(map(len, self._limbo))
        if available < 0:
            raise InternalError(f"{-available} pages more are promised than there are")

    def _free(self, pages: list[int]) -> None:
        if self._limbo:
            self._limbo[-1] += pages
        else:
            self.allocator.free(pages)

    def _free_full(self, pages: list[int]) -> None:
        if self._has_full:
            self._free(pages)

    def _take_full(self, count: int) -> list[int]:
        return self._take(count) if self._has_full else [CANARY_PAGE] * count

    def _take(self, count: int) -> list[int]:
        short = count - self.allocator.free_pages
        if short > 0:
            self.allocator.free(self._evict(short) if self.bounded else self.cache.evict(short))
        return self.allocator.allocate(count)

    def _evict(self, count: int) -> list[int]:
        """At least `count` pages if so many are evictable: of blocks that were gone past, then of whole blocks, least
        recently used first, then of the ends of what is cached."""
        pages = self.bounded.evict_passed(count)
        while len(pages) < count and self._has_full and (block := self.cache.evict_one()) is not None:
            pages.append(block[1])
            pages += self.bounded.discard(block[0])
        pages += self.bounded.evict_ends(count - len(pages))
        if not self._has_full:
            pages += self._prune()
        return pages

    def _prune(self) -> list[int]:
        """The tree without the oldest blocks that are only names in it, if there are many of them."""
        pages: list[int] = []
        most = max(BARE_BLOCKS * self.allocator.pages, LEAST_BARE_BLOCKS)
        while self.cache.cached_pages > most and (block := self.cache.evict_one()) is not None:
            pages += self.bounded.discard(block[0])
        return pages
