"""The picture as a file, PNG or SVG by its suffix. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baton.cli.bench.plot import load_pyplot
from baton.cli.trace_handoff.drawing import KINDS, Panel, panels
from baton.cli.trace_handoff.timeline import Trace
from baton.core.errors import ConfigError

_WIDTH_INCHES, _MOST_HEIGHT_INCHES = 11.0, 7.0
_LINE_INCHES = 0.16
_NAMED_ROWS = 16


def write(path: Path, trace: Trace) -> None:
    """Raises ConfigError where matplotlib is missing or the file cannot be written."""
    pyplot = load_pyplot()
    drawn = panels(trace)
    rows = min(_MOST_HEIGHT_INCHES, max(1.6, _LINE_INCHES * trace.layers))
    size = _WIDTH_INCHES, 2 * rows + 2.2
    figure, axes = pyplot.subplots(len(drawn), 1, figsize=size, constrained_layout=True)
    figure.suptitle(
        f"{trace.tokens:,} tokens, {trace.bytes / 1e6:.1f} MB: {trace.hidden_share:.0%} hidden, "
        f"tail {trace.tail_s * 1e3:.1f} ms"
    )
    for axis, panel in zip(axes, drawn, strict=True):
        _draw(axis, panel)
    shown = [kind for kind in KINDS if any(box.kind == kind for panel in drawn for box in panel.boxes)]
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=KINDS[kind][1]) for kind in shown]
    labels = [KINDS[kind][0] for kind in shown]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(shown), frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=90)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the picture {path} cannot be written: {error}") from None
    finally:
        pyplot.close(figure)


def _draw(axis: Any, panel: Panel) -> None:
    for kind, (_, colour, _) in KINDS.items():
        boxes = [box for box in panel.boxes if box.kind == kind]
        axis.barh(
            [box.top for box in boxes],
            [(box.end_s - box.start_s) * 1e3 for box in boxes],
            [box.bottom - box.top for box in boxes],
            [box.start_s * 1e3 for box in boxes],
            align="edge",
            color=colour,
        )
    for line, mark in enumerate(sorted(panel.marks, key=lambda mark: -mark.at_s)):
        axis.axvline(mark.at_s * 1e3, color="#b0263c", linewidth=0.8, linestyle="--")
        late = mark.at_s > (panel.start_s + panel.end_s) / 2
        axis.annotate(
            f"{mark.label} {mark.at_s * 1e3:.1f} ",
            (mark.at_s * 1e3, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 10 * line),
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=8,
            color="#b0263c",
        )
    axis.set(xlim=(panel.start_s * 1e3, panel.end_s * 1e3), ylim=(panel.rows, 0), xlabel="ms", ylabel="layer")
    named = range(0, panel.rows, -(-panel.rows // _NAMED_ROWS))
    axis.set_yticks([layer + 0.5 for layer in named], [str(layer) for layer in named])
    axis.set_title(panel.title, loc="left", fontsize=10)
