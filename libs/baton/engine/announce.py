"""Tells the handoff which pages of OFFER requests have their final bytes, layer by layer while the step runs.

A page is announced when its last token's K and V are written: full pages with the chunk that fills them, the last,
partial one with the last chunk, and pages from the cache, all layers of them, when the request is admitted.
Together that is every (layer, page) of the prompt, each once, before the step that draws the first token returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baton.engine.api import HandoffListener, Stage
from baton.engine.plan import PlannedRow, StepPlan
from baton.engine.pool import PageAllocator
from baton.engine.request import Phase, RequestState


class Announcer:
    """Calls `listener` where steps are prepared and where they run. Its exceptions pass through, and fail the step."""

    def __init__(self, listener: HandoffListener, allocator: PageAllocator, layers: int, page_size: int) -> None:
        self._listener = listener
        self._allocator = allocator
        self._layers = layers
        self._page_size = page_size

    def begin(self, plan: StepPlan) -> Callable[[int], None] | None:
        """Offer the step's newcomers with the pages that they found in the cache.

        Returns what is to be called with each layer whose K and V are in the pool; None if nobody listens for them.
        """
        for request in plan.begun:
            if request.stage is Stage.OFFER:
                self._offer(request)
        spans = [(row.request, *self._span(row)) for row in plan.rows if row.request.stage is Stage.OFFER]
        announced = [(request, first, *self._name(request, first, last)) for request, first, last in spans]
        if not announced:
            return None

        def on_layer(layer: int) -> None:
            for request, first, pages, generations in announced:
                if request.phase is Phase.HELD:
                    continue  # cancelled or failed while the step was on its way
                self._listener.produced(request.attempt, layer, layer + 1, first, pages, generations)

        return on_layer

    def _offer(self, request: RequestState) -> None:
        request.announced = True
        self._listener.offered(request.attempt, len(request.tokens))
        if request.held_blocks:
            pages, generations = self._name(request, 0, request.held_blocks)
            self._listener.produced(request.attempt, 0, self._layers, 0, pages, generations)

    def _span(self, row: PlannedRow) -> tuple[int, int]:
        """Pages `first:last` of the request that this chunk finishes. Chunks start with a page."""
        last = -(-row.end // self._page_size) if row.draws else row.end // self._page_size
        return row.start // self._page_size, last

    def _name(self, request: RequestState, first: int, last: int) -> tuple[Sequence[int], Sequence[int]]:
        pages = request.pages.view[first:last].tolist()
        return pages, self._allocator.generations(pages)
