"""The picture as one HTML file: inline SVG, no script, nothing from elsewhere, on light and dark ground."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from baton.cli.trace_handoff import report
from baton.cli.trace_handoff.drawing import KINDS, Mark, Panel, panels
from baton.cli.trace_handoff.timeline import Trace

_WIDTH, _LEFT, _RIGHT, _FOOT = 1120, 52, 20, 34
_MOST_PLOT_HEIGHT, _ROW_HEIGHT = 640, 22
_LABEL_HEIGHT = 15
_LEAST_BOX = 0.7  # what is shorter than this would not be seen
_TICKS = 8
_CSS = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d2329; --faint: #d8dde2; --mark: #b0263c; %(light)s }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15191d; --ink: #dfe5ea; --faint: #39424a; --mark: #ff7d8f; %(dark)s } }
body { background: var(--ground); color: var(--ink); font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; }
svg { max-width: 100%%; height: auto; display: block; }
svg text { fill: var(--ink); font-size: 11px; }
svg .mark { stroke: var(--mark); stroke-dasharray: 3 2; } svg .mark-label { fill: var(--mark); }
svg .grid { stroke: var(--faint); }
%(kinds)s
pre { overflow-x: auto; }
.legend span { margin-right: 1.2em; }
.legend i { display: inline-block; width: 1em; height: .8em; margin-right: .35em; }
"""


def html(trace: Trace) -> str:
    """The whole page."""
    title = f"Handoff of {trace.tokens:,} tokens, {trace.prefill_worker} to {trace.decode_worker}"
    kinds = {kind for panel in panels(trace) for kind in (box.kind for box in panel.boxes)}
    legend = "".join(
        f'<span><i style="background:var(--{kind})"></i>{escape(KINDS[kind][0])}</span>'
        for kind in KINDS
        if kind in kinds
    )
    drawn = "".join(f"<h2>{escape(panel.title.capitalize())}</h2>\n{_svg(panel)}\n" for panel in panels(trace))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_style()}</style></head>\n<body><h1>{escape(title)}</h1>\n<pre>{escape(report.text(trace))}</pre>\n"
        f'<p class="legend">{legend}</p>\n<p>One row per layer: above computing, below its pages\' way to decode.</p>\n'
        f"{drawn}</body></html>\n"
    )


def _style() -> str:
    light = " ".join(f"--{kind}: {colours[1]};" for kind, colours in KINDS.items())
    dark = " ".join(f"--{kind}: {colours[2]};" for kind, colours in KINDS.items())
    return _CSS % {
        "light": light,
        "dark": dark,
        "kinds": "\n".join(f"svg .{kind} {{ fill: var(--{kind}); }}" for kind in KINDS),
    }


def _svg(panel: Panel) -> str:
    scale = (_WIDTH - _LEFT - _RIGHT) / (panel.end_s - panel.start_s) if panel.end_s > panel.start_s else 0.0
    row = min(_ROW_HEIGHT, _MOST_PLOT_HEIGHT / panel.rows)
    labels = list(_stack(panel.marks, lambda at_s: _LEFT + (at_s - panel.start_s) * scale))
    head = _LABEL_HEIGHT * (1 + max((line for _, _, line in labels), default=0)) + 4
    floor = head + row * panel.rows
    parts = [f'<svg viewBox="0 0 {_WIDTH} {floor + _FOOT:.0f}" role="img" aria-label="{escape(panel.title)}">']
    for layer in range(0, panel.rows, max(1, round(12 / row))):
        y = head + row * layer
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + row / 2 + 4:.1f}" text-anchor="end">{layer}</text>')
    for at_s in ticks(panel.start_s, panel.end_s):
        x = _LEFT + (at_s - panel.start_s) * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{head:.1f}" y2="{floor:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 15:.1f}" text-anchor="middle">{at_s * 1e3:g} ms</text>')
    for box in panel.boxes:
        start, end = (min(max(at_s, panel.start_s), panel.end_s) for at_s in (box.start_s, box.end_s))
        x, width = _LEFT + (start - panel.start_s) * scale, max(_LEAST_BOX, (end - start) * scale)
        y, height = head + row * box.top, row * (box.bottom - box.top)
        parts.append(
            f'<rect class="{box.kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{escape(box.title)}</title></rect>"
        )
    for mark, x, line in labels:
        top = _LABEL_HEIGHT * (line + 1)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.0f}" y2="{floor:.1f}"/>')
        label = f"{mark.label} {mark.at_s * 1e3:.1f} ms"
        side = ' text-anchor="end"' if x > _WIDTH / 2 else ""
        parts.append(f'<text class="mark-label" x="{x:.1f}" y="{top - 3:.0f}"{side}>{escape(label)}</text>')
    parts.append(f'<text x="{_LEFT - 6}" y="{floor + 15:.1f}" text-anchor="end">layer</text></svg>')
    return "\n".join(parts)


def _stack(marks: Sequence[Mark], place: Callable[[float], float]) -> Iterator[tuple[Mark, float, int]]:
    """Marks with their x and the line that their label stands on: each on one of its own, the latest on top."""
    ordered = sorted(marks, key=lambda mark: mark.at_s)
    for line, mark in enumerate(reversed(ordered)):
        yield mark, place(mark.at_s), line


def ticks(start_s: float, end_s: float) -> list[float]:
    """Round times between the two, about `_TICKS`."""
    steps = [factor * 10.0**power for power in range(-6, 4) for factor in (1, 2, 5)]
    step = next((step for step in steps if (end_s - start_s) / step <= _TICKS), steps[-1])
    first = -int(-start_s // step) if start_s >= 0 else 0
    return [round(number * step, 9) for number in range(first, int(end_s // step) + 1) if number * step >= start_s]
