"""A toy model whose layers keep a state of constant size, or attend to all or a part of their past, and which notices
every wrong page: what it draws depends on every byte of its state, and a state says after how many tokens it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from windowed_toy import WindowedToy, advanced, first_visible

from baton.core.layout import CacheGroup, KvLayout
from baton.engine.batch import StepBatch
from baton.testing.toy_model import MODULUS, TOY_LAYOUT

FULL = CacheGroup("full", 0, (1, 4))
HYBRID = (FULL, CacheGroup("state", 4, (0, 2)), CacheGroup("state", 2, (3,)))
ALL_KINDS = (  # layers 1 and 5 attend and keep a state
    FULL, CacheGroup("window", 6, (5, 6)), CacheGroup("state", 2, (0, 5)), CacheGroup("state", 2, (1,)),
)  # fmt: skip
STATES = (CacheGroup("state", 1, (0, 1)),)  # no layer attends to anything
LAYOUTS = {
    "hybrid": replace(TOY_LAYOUT, groups=HYBRID),
    "all kinds": replace(TOY_LAYOUT, groups=ALL_KINDS),
    "states": replace(TOY_LAYOUT, groups=STATES),
}


class StatefulToy(WindowedToy):
    """Layers with K and V keep the chained value of each token there, those with a state that of the last; whoever has
    both notices where they differ."""

    def __init__(self, layout: KvLayout) -> None:
        super().__init__(layout)
        groups = [(index, group) for index, group in enumerate(layout.groups) if group.kind == "state"]
        self._states = {layer: (index, at) for index, group in groups for at, layer in enumerate(group.layers)}

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        rows = [slice(a, b) for a, b in pairwise(batch.q_starts.tolist())]
        new: dict[int, np.ndarray] = {}
        for layer in sorted(self._places.keys() | self._states.keys()):
            new[layer] = self._chained(batch, layer, rows)
            if layer in self._states:
                self._write_states(batch, layer, rows, new[layer])
            if layer in self._places:
                self._write(batch, layer, new[layer])
            if on_layer is not None:
                on_layer(layer)
        wanted = batch.logit_rows.tolist()
        logits = torch.zeros(len(wanted), self.vocab_size)
        for index, at in enumerate(wanted):
            row = next(row for row, span in enumerate(rows) if span.start <= at < span.stop)
            position = int(batch.positions[at])
            digest = sum((layer + 1) * int(new[layer][at]) for layer in self._states)
            for layer, (group, _) in self._places.items():
                first = first_visible(self.layout.groups[group], position)
                held = self._read(batch, layer, row, first, position + 1)
                digest += (layer + 1) * int((np.arange(first + 1, position + 2) * held).sum())
            logits[index, digest % MODULUS % self.vocab_size] = 1.0
        return logits

    def _chained(self, batch: StepBatch, layer: int, rows: Sequence[slice]) -> np.ndarray:
        values = np.zeros(len(batch.token_ids), dtype=np.int64)
        for row, span in enumerate(rows):
            position = int(batch.positions[span.start])
            held = set()
            if position and layer in self._states:
                held.add(self._state(batch, layer, row, position))
            if position and layer in self._places:
                held.add(int(self._read(batch, layer, row, position - 1, position)[0]))
            assert len(held) == (position > 0), "K and V are those of other tokens than the state"
            value = held.pop() if held else 0
            for at, token in enumerate(batch.token_ids[span].tolist()):
                value = values[span.start + at] = advanced(value, token, position + at)
        return values

    def _state(self, batch: StepBatch, layer: int, row: int, position: int) -> int:
        group, at = self._states[layer]
        sources = batch.views[group].state_sources
        assert sources is not None
        held = self._pool[at, sources[row].numpy()].reshape(-1).astype(np.int64)
        assert held[0] == position, "the state is not that after the tokens before"
        assert (held[1:] == held[1]).all(), "a page of the state is another's"
        return int(held[1]) - layer

    def _write_states(self, batch: StepBatch, layer: int, rows: Sequence[slice], values: np.ndarray) -> None:
        group, at = self._states[layer]
        targets = batch.views[group].state_targets
        assert targets is not None
        assert len(set(targets.ravel().tolist())) == targets.numel(), "two states in one page"
        for row, span in enumerate(rows):
            pages = targets[row].numpy()
            self._pool[at, pages] = values[span.stop - 1] + layer
            self._pool[at, pages[0]].reshape(-1)[0] = int(batch.positions[span.stop - 1]) + 1
