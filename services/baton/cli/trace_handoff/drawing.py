"""The picture of a handoff as plain shapes: time to the right, one row per layer. Pure.

In each row, above: when the layer was computed, chunk by chunk; below: when its pages were announced, read and checked.
The second panel shows the end of the first one, enlarged: there is what computing does not hide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baton.cli.trace_handoff.timeline import Computed, Read, Trace

KINDS = {  # kind -> what the legend says, colour on light ground, on dark ground
    "computed": ("computed by prefill", "#4878a8", "#6fa3d8"),
    "cached": ("cached at prefill", "#9aa5b1", "#7d8894"),
    "waiting": ("announced, not yet read", "#f0c987", "#8a6a35"),
    "read": ("read by decode's agent", "#e07b39", "#f0924f"),
    "checked": ("checked", "#5a9e6f", "#74c08b"),
}
_SHOWN_MARKS = ("committed", "verified", "first token", "first decoded token")
_ABOVE, _BELOW = (0.06, 0.46), (0.54, 0.94)
_END_SHARE = 3.0  # the second panel begins so many times before the last layer as verification comes after it
_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class Box:
    """Rows grow downwards; `title` is shown where a pointer rests on it."""

    kind: str
    start_s: float
    end_s: float
    top: float
    bottom: float
    title: str


@dataclass(frozen=True, slots=True)
class Mark:
    at_s: float
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    """What lies between two times. Boxes may reach beyond them."""

    title: str
    start_s: float
    end_s: float
    rows: int
    boxes: tuple[Box, ...]
    marks: tuple[Mark, ...]


def panels(trace: Trace) -> tuple[Panel, Panel]:
    """The whole handoff, and its end."""
    boxes = tuple(_boxes(trace))
    marks = (Mark(trace.computed_s, "last layer"), *(Mark(trace.marks[n], n) for n in _SHOWN_MARKS if n in trace.marks))
    last = max(mark.at_s for mark in marks)
    begin = trace.computed_s - _END_SHARE * (trace.marks["verified"] - trace.computed_s)
    whole = _panel("the whole handoff", 0.0, last, trace.layers, boxes, marks)
    return whole, _panel("its end", max(0.0, begin), max(trace.marks["verified"], begin), trace.layers, boxes, marks)


def _panel(title: str, start: float, end: float, rows: int, boxes: tuple[Box, ...], marks: tuple[Mark, ...]) -> Panel:
    margin = _MARGIN * (end - start)
    low, high = start - margin, end + margin
    seen = tuple(box for box in boxes if box.end_s >= low and box.start_s <= high)
    return Panel(title, low, high, rows, seen, tuple(mark for mark in marks if low <= mark.at_s <= high))


def _boxes(trace: Trace) -> Iterator[Box]:
    for bar in trace.computed:
        kind = "cached" if bar.cached else "computed"
        for layer in range(bar.layer_start, bar.layer_end):
            yield Box(kind, bar.start_s, bar.end_s, layer + _ABOVE[0], layer + _ABOVE[1], _computed_title(bar, layer))
    for read in trace.reads:
        top, bottom = read.layer_start + _BELOW[0], read.layer_end - 1 + _BELOW[1]
        stages = ("waiting", read.announced_s, read.started_s), ("read", read.started_s, read.arrived_s)
        for kind, start, end in (*stages, ("checked", read.arrived_s, read.verified_s)):
            yield Box(kind, start, end, top, bottom, _read_title(read))


def _computed_title(bar: Computed, layer: int) -> str:
    pages = f"layer {layer}, pages {bar.page_start} to {bar.page_start + bar.pages - 1}"
    return f"{pages}: cached" if bar.cached else f"{pages}: {_span(bar.start_s, bar.end_s)}"


def _read_title(read: Read) -> str:
    last = read.layer_end - 1
    layers = f"layers {read.layer_start} to {last}" if last > read.layer_start else f"layer {last}"
    pages = f"pages {read.page_start} to {read.page_start + read.pages - 1}"
    at_ms = [f"{at_s * 1e3:.2f}" for at_s in (read.announced_s, read.heard_s, read.verified_s)]
    steps = "announced {}, heard {}, checked {} ms".format(*at_ms)
    return f"{layers}, {pages}, {read.bytes / 1e6:.2f} MB: read {_span(read.started_s, read.arrived_s)}; {steps}"


def _span(start_s: float, end_s: float) -> str:
    return f"{start_s * 1e3:.2f} to {end_s * 1e3:.2f} ms"
