"""Tells the handoff which pages of OFFER requests have their final bytes, layer by layer while the step runs.

A page is announced when its last token's K and V are written: full pages with the chunk that fills them, the last,
partial one with the last chunk, and pages from the cache, all layers of them, when the request is admitted.
Together that is every (layer, page) of the prompt, each once, before the step that draws the first token returns.
Where layers are in groups, these are the pages that the next token attends to, group after group, and layer i of a
page is the i-th of its group; what a smaller group leaves of its pages comes with its last layer. States are announced
with the last chunk, after which they stay as they are. A layer that has K and V and a state announces both at once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from baton.core.layout import STATE, KvLayout
from baton.engine.api import HandoffListener, Stage
from baton.engine.bands import bands_of
from baton.engine.plan import PlannedRow, StepPlan
from baton.engine.pool import PageAllocator
from baton.engine.request import Phase, RequestState

_Pages = tuple[int, list[int], list[int]]  # place of the first, ids and generations


class Announcer:
    """Calls `listener` where steps are prepared and where they run. Its exceptions pass through, and fail the step."""

    def __init__(self, listener: HandoffListener, allocator: PageAllocator, layout: KvLayout) -> None:
        self._listener = listener
        self._allocator = allocator
        self._layout = layout
        # Of each of the model's layers: its groups, and its layers [start, end) of their pages.
        self._places: dict[int, list[tuple[int, int, int]]] = {}
        for index, layers in enumerate([group.layers for group in layout.groups] or [range(layout.layers)]):
            for at, layer in enumerate(layers):
                end = at + 1 if at + 1 < len(layers) else layout.layers
                self._places.setdefault(layer, []).append((index, at, end))
        bands = enumerate(bands_of(layout))
        # Of each group: its band, and its place in that; none for full attention, and for states.
        self._in_band = {group: (at, group - band.groups.start) for at, band in bands for group in band.groups}

    def begin(self, plan: StepPlan) -> Callable[[int], None] | None:
        """Offer the step's newcomers with the pages that they found in the cache.

        Returns what is to be called with each layer when all that it keeps is in the pool; None if nobody listens.
        """
        for request in plan.begun:
            if request.stage is Stage.OFFER:
                self._offer(request)
        offers = [row for row in plan.rows if row.request.stage is Stage.OFFER]
        if not offers:
            return None
        announced = [(row.request, self._name(row.request, *self._span(row), ends=row.draws)) for row in offers]

        def on_layer(layer: int) -> None:
            for request, by_group in announced:
                if request.phase is Phase.HELD:
                    continue  # cancelled or failed while the step was on its way
                for group, start, end in self._places[layer]:
                    if (named := by_group[group]) is not None:
                        self._listener.produced(request.attempt, start, end, *named)

        return on_layer

    def _offer(self, request: RequestState) -> None:
        request.announced = True
        self._listener.offered(request.attempt, len(request.tokens))
        for named in self._name(request, 0, request.held_blocks, ends=False):
            if named is not None:
                self._listener.produced(request.attempt, 0, self._layout.layers, *named)

    def _span(self, row: PlannedRow) -> tuple[int, int]:
        """Blocks `first:last` of the request that this chunk finishes. Chunks start with a page."""
        page_size = self._layout.page_size
        last = -(-row.end // page_size) if row.draws else row.end // page_size
        return row.start // page_size, last

    def _name(self, request: RequestState, first: int, last: int, ends: bool) -> list[_Pages | None]:
        """Of each group, the pages of blocks `first:last` that are handed over; None: there are none. `ends`: they are
        the prompt's last, and the state after it is written."""
        tails = self._layout.tails(len(request.tokens))
        starts = accumulate(map(len, tails), initial=0)
        found: list[_Pages | None] = []
        for group, (blocks, start) in enumerate(zip(tails, starts, strict=False)):
            wanted = range(max(first, blocks.start), min(last, blocks.stop))
            if self._layout.groups and self._layout.groups[group].kind == STATE:
                wanted = blocks if ends else range(0)
            pages = self._pages(request, group, wanted) if wanted else []
            generations = self._allocator.generations(pages)
            found.append((start + wanted.start - blocks.start, pages, generations) if wanted else None)
        return found

    def _pages(self, request: RequestState, group: int, blocks: range) -> list[int]:
        if request.state is not None and self._layout.groups[group].kind == STATE:
            skipped = sum(each.size for each in self._layout.groups[:group] if each.kind == STATE)
            return list(request.state.target[skipped : skipped + len(blocks)])
        if group not in self._in_band:
            return list(request.pages.view[blocks.start : blocks.stop].tolist())
        band, row = self._in_band[group]
        table = request.bands[band]
        return list(table.pages.view[row, blocks.start - table.first : blocks.stop - table.first].tolist())
