"""How many layers one announcement should cover: decided from what computing and moving them is measured to take.

Every announcement costs a fixed time, whatever its size: two messages, one operation, a wake-up at each end. Announced
layer by layer, a long prompt hides all but its last layer's transfer behind compute; a short one, whose layers take
less than that fixed time, would queue up. So the source foresees for each grouping when its last byte arrives, and
takes the one that leaves the shortest tail after the last layer is computed.

Both sides agree without negotiation: an announcement names its layers, and the reader reads what it names.
Pure: times are told. Knows no messages.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from baton.core.attempt import Attempt
from baton.core.layout import KvLayout

FORGET = 0.9  # weight of the past at each new measurement
NEAR_BEST = 1.05  # of groupings whose tails are this close, the one with the fewest announcements is taken


@dataclass(frozen=True, slots=True)
class LinkCost:
    """Time from an announcement to its answer: `fixed_s + bytes * s_per_byte`."""

    fixed_s: float
    s_per_byte: float


def tail_s(layers: int, layer_s: float, layer_bytes: int, link: LinkCost, group: int) -> float:
    """Time from the end of computing to the last byte, when `group` layers are announced together.

    A group starts when its last layer is computed and the group before it has arrived.
    """
    arrived = 0.0
    for start in range(0, layers, group):
        end = min(layers, start + group)
        arrived = max(arrived, end * layer_s) + link.fixed_s + (end - start) * layer_bytes * link.s_per_byte
    return arrived - layers * layer_s


def best_group(layers: int, layer_s: float, layer_bytes: int, link: LinkCost) -> int:
    """Layers per announcement."""
    sizes = sorted({-(-layers // count) for count in range(1, layers + 1)})
    tails = {size: tail_s(layers, layer_s, layer_bytes, link, size) for size in sizes}
    shortest = min(tails.values())
    return max(size for size, tail in tails.items() if tail <= shortest * NEAR_BEST)


class LinkMeter:
    """Fits a `LinkCost` to (bytes, seconds) by least squares; older measurements count less and less."""

    def __init__(self) -> None:
        self._sums: tuple[float, ...] = (0.0,) * 5  # of 1, bytes, seconds, bytes squared, bytes x seconds

    def add(self, size: int, seconds: float) -> None:
        new = (1.0, size, seconds, size**2, size * seconds)
        self._sums = tuple(FORGET * old + value for old, value in zip(self._sums, new, strict=True))

    def cost(self) -> LinkCost | None:
        """None before the first measurement. While all had one size, nothing says what a byte costs: it counts as free,
        and the larger groups that follow from it soon tell."""
        weight = self._sums[0]
        if not weight:
            return None
        mean_x, mean_y, mean_xx, mean_xy = (value / weight for value in self._sums[1:])
        variance = mean_xx - mean_x**2
        slope = 0.0
        if variance > (0.01 * mean_x) ** 2:
            slope = max(0.0, (mean_xy - mean_x * mean_y) / variance)
        slope = min(slope, mean_y / mean_x)
        return LinkCost(mean_y - slope * mean_x, slope)


class Pacer:
    """Measures one worker's compute and its readers' links, and chooses groups. `peer` names a reader's connection."""

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        self._page_layer_s: float | None = None  # computing one layer of one page
        self._last: dict[Attempt, tuple[int, int, float]] = {}  # layer_end, page_start, when it was computed
        self._links: dict[Hashable, LinkMeter] = {}
        self._unanswered: dict[Attempt, dict[int, tuple[int, float]]] = {}  # seq -> bytes, since when

    def produced(
        self, attempt: Attempt, layer_start: int, layer_end: int, page_start: int, pages: int, at: float
    ) -> None:
        """The worker computed layers of some pages, at wall clock `at`."""
        before = self._last.get(attempt)
        self._last[attempt] = (layer_end, page_start, at)
        if before is None or before[:2] != (layer_start, page_start) or at <= before[2]:
            return
        measured = (at - before[2]) / (layer_end - layer_start) / pages
        past = measured if self._page_layer_s is None else self._page_layer_s
        self._page_layer_s = FORGET * past + (1 - FORGET) * measured

    def announced(self, attempt: Attempt, seq: int, size: int, now: float) -> None:
        """Only announcements that are alone on their way are measured: others wait for each other."""
        waiting = self._unanswered.setdefault(attempt, {})
        waiting[seq] = (0 if waiting else size, now)

    def answered(self, peer: Hashable, attempt: Attempt, seq: int, now: float) -> None:
        size, since = self._unanswered.get(attempt, {}).pop(seq, (0, 0.0))
        if size:
            self._links.setdefault(peer, LinkMeter()).add(size, now - since)

    def ended(self, attempt: Attempt) -> None:
        self._last.pop(attempt, None)
        self._unanswered.pop(attempt, None)

    def disconnected(self, peer: Hashable) -> None:
        self._links.pop(peer, None)

    def group(self, peer: Hashable, pages: int) -> int:
        """Layers that one announcement of so many pages should cover; 1 until something was measured."""
        meter = self._links.get(peer)
        link = meter.cost() if meter is not None else None
        if link is None or self._page_layer_s is None:
            return 1
        layer_bytes = pages * self._layout.page_bytes
        return best_group(self._layout.layers, pages * self._page_layer_s, layer_bytes, link)
