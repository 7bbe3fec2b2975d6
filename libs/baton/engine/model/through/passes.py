"""How the rows of a step pass through a model of `transformers`: what is found out while it is loaded."""

from __future__ import annotations

import enum


class Passes(enum.Enum):
    """The first is the fastest. All but the last keep a row's past in pages; that keeps its tokens there."""

    TOGETHER = "rows together"
    APART = "row by row"
    RECOMPUTED = "whole texts, row by row"
