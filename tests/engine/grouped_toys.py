"""Toys of models whose blocks have pages of several kinds, by name."""

from __future__ import annotations

from dataclasses import replace

import state_toy
import windowed_toy

from baton.core.layout import CacheGroup, KvLayout

LAYOUTS = {
    **windowed_toy.LAYOUTS,
    **state_toy.LAYOUTS,
    "one window": replace(windowed_toy.LAYOUTS["mixed"], groups=(CacheGroup("window", 13, (0, 1)),)),
    "chunks": replace(
        windowed_toy.LAYOUTS["mixed"], groups=(CacheGroup("full", 0, (0, 1)), CacheGroup("chunk", 32, (2, 3)))
    ),
}
# Where random work is tried, each with one of the engine's loops.
SEARCHED = [
    ("mixed", "plain"),
    ("windows", "late"),
    ("all kinds", "late"),
    ("states", "late"),
    ("chunks", "plain"),
]


def toy(layout: KvLayout) -> windowed_toy.WindowedToy:
    keeps_states = any(group.kind == "state" for group in layout.groups)
    return (state_toy.StatefulToy if keeps_states else windowed_toy.WindowedToy)(layout)
