"""Prefixes that come from elsewhere, into pages of the request that wants them: reserved, filled by somebody, cached.

While a request waits for a pull it has pages that stand for nothing yet (`RequestState.pages` after the cached ones,
and `arriving`), which are filled in the order of a handoff's pages: all of full attention, then what the next token
needs of layers with windows and states. How far the source got is known only then, and so is which page is what.

The ledger (baton.engine.ledger) takes and frees the pages.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from baton.core.layout import CANARY_PAGE
from baton.engine.bounded import BoundedPages
from baton.engine.radix import RadixCache
from baton.engine.request import RequestState


class Incoming:
    """What requests pull. Not thread-safe."""

    def __init__(self, cache: RadixCache, bounded: BoundedPages, free: Callable[[list[int]], None]) -> None:
        """`bounded`: what blocks have beside their pages in `cache`. `free` takes pages that nobody needs any more."""
        self._cache = cache
        self._bounded = bounded
        self._free = free

    def extra_pages(self, held: int, blocks: int, fresh: int) -> int:
        """Pages for a pull of blocks `held:blocks`, beside those of the `fresh` blocks that the request lacks."""
        return max(0, self._pages(held, blocks) - fresh * self._bounded.has_full)

    def to_fill(self, request: RequestState) -> list[int]:
        """The pages of what the request pulls, in their order."""
        return self.own(request)[: self._pages(request.held_blocks, request.pull_blocks)]

    def own(self, request: RequestState) -> list[int]:
        """All pages of the request itself but those of windows and states."""
        full = request.pages.view[request.held_blocks :].tolist() if self._bounded.has_full else []
        return [*full, *request.arriving]

    def arrived(self, request: RequestState, blocks: int) -> None:
        """So many leading blocks are there, and nobody writes into the request's pages any more: what came belongs to
        the cache, under the request's lock, and the other pages to nobody."""
        pages, held = iter(self.own(request)), request.held_blocks
        request.pages.clear()
        request.arriving = []
        if held < blocks and request.node is not None:
            count = blocks - held
            own = list(islice(pages, count)) if self._bounded.has_full else [CANARY_PAGE] * count
            insertion = self._cache.insert(request.node, request.hashes[held:blocks], own)
            request.node, request.held_blocks = insertion.node, blocks
            if self._bounded.has_full:
                self._free([own[index] for index, _ in insertion.duplicates])
            self._free(self._bounded.take_in(request.hashes, blocks, pages))
        self._free(list(pages))

    def _pages(self, held: int, blocks: int) -> int:
        return (blocks - held) * self._bounded.has_full + self._bounded.pages_after(blocks)
