"""A run as a picture: distributions of TTFT, ITL and E2E, and tokens over time. Needs matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from baton.cli.bench.outcome import Log
from baton.core.errors import ConfigError

_INCHES = (10.0, 7.0)
_BINS = 60


def check_available() -> None:
    """Raises ConfigError where matplotlib is missing: before a long run, not after it."""
    load_pyplot()


def write_plot(path: Path, log: Log, title: str) -> None:
    """Draw `log` into `path`; its suffix says the format. Raises ConfigError when the file cannot be written."""
    pyplot = load_pyplot()
    answered = log.answered
    figure, axes = pyplot.subplots(2, 2, figsize=_INCHES, constrained_layout=True)
    figure.suptitle(title)
    _cumulative(axes[0][0], [outcome.ttft_s for outcome in answered], "TTFT")
    _cumulative(axes[0][1], [gap for outcome in answered for gap in outcome.itl_s], "ITL")
    _cumulative(axes[1][0], [outcome.e2e_s for outcome in answered], "E2E")
    arrivals = [at for outcome in log.outcomes for at in outcome.arrivals_s]
    if arrivals:
        counts, edges = np.histogram(arrivals, bins=_BINS)
        axes[1][1].step(edges[:-1], counts / np.diff(edges), where="post")
    axes[1][1].set(title="output", xlabel="s", ylabel="pieces per s", ylim=(0, None))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the plot {path} cannot be written: {error}") from None
    finally:
        pyplot.close(figure)


def _cumulative(axis: Any, values_s: list[float], title: str) -> None:
    values = np.sort(np.asarray(values_s)) * 1e3
    if len(values):
        axis.plot(values, np.arange(1, len(values) + 1) / len(values))
    axis.set(title=title, xlabel="ms", ylabel="share of values at most", ylim=(0, 1.02))


def load_pyplot() -> Any:
    """matplotlib.pyplot, drawing into files only. Raises ConfigError where it is missing."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise ConfigError(
            "a plot needs matplotlib, which is not installed; it comes with: pip install 'baton-serving[bench]'"
        ) from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")
