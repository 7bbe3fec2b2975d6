"""A toy model (baton.testing.toy_model) whose layers attend to parts of their past, and which notices every wrong page.

States are as there, chained by the first layer. All layers keep them; a token's digest adds up those that each of them
attends to, read back from the pool. So a page that is missing too early, stale, or somebody else's changes the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from baton.core.layout import CacheGroup, KvLayout
from baton.engine.batch import StepBatch
from baton.testing.toy_model import MODULUS, TOY_LAYOUT, TOY_VOCAB_SIZE

FULL = CacheGroup("full", 0, (0, 5))
MIXED = (
    FULL, CacheGroup("window", 6, (1, 2)), CacheGroup("window", 6, (3,)), CacheGroup("chunk", 8, (4, 7)),
    CacheGroup("window", 17, (6,)),
)  # fmt: skip
WINDOWS = (CacheGroup("window", 7, (0, 2)), CacheGroup("window", 13, (1, 3)))  # no layer sees everything
LAYOUTS = {
    "mixed": replace(TOY_LAYOUT, groups=MIXED),
    "windows": replace(TOY_LAYOUT, groups=WINDOWS),
}


def first_visible(group: CacheGroup, position: int) -> int:
    if group.kind == "window":
        return max(0, position - group.size + 1)
    return position // group.size * group.size if group.kind == "chunk" else 0


def advanced(state: int, token: int, position: int) -> int:
    """The state after one more token."""
    return (31 * state + 7 * token + position + 1) % MODULUS


def reference(layout: KvLayout, prompt: Sequence[int], n: int) -> list[int]:
    """What greedy decoding appends, worked out from the tokens alone."""
    tokens, states = list(prompt), []
    while len(tokens) < len(prompt) + n:
        for position in range(len(states), len(tokens)):
            states.append(advanced(states[-1] if states else 0, tokens[position], position))
        last, digest = len(tokens) - 1, 0
        for group in layout.groups:
            if group.kind == "state":
                digest += sum((layer + 1) * states[last] for layer in group.layers)
                continue
            seen = range(first_visible(group, last), last + 1)
            digest += sum((layer + 1) * (q + 1) * states[q] for layer in group.layers for q in seen)
        tokens.append(digest % MODULUS % TOY_VOCAB_SIZE)
    return tokens[len(prompt) :]


class WindowedToy:
    """A `ModelRunner`. Asks of the batch no more than its views."""

    vocab_size = TOY_VOCAB_SIZE
    max_context_tokens = 4096
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, layout: KvLayout) -> None:
        self.layout = layout
        self._places = {
            layer: (index, at)
            for index, group in enumerate(layout.groups)
            for at, layer in enumerate(group.layers)
            if group.kind != "state"
        }

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._pool = pool.numpy()

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        starts = batch.q_starts.tolist()
        rows = [slice(a, b) for a, b in pairwise(starts)]
        new: list[int] = []
        for row, span in enumerate(rows):
            position = int(batch.positions[span.start])
            state = int(self._read(batch, 0, row, position - 1, position)[0]) if position else 0
            for at, token in enumerate(batch.token_ids[span].tolist(), start=position):
                state = advanced(state, token, at)
                new.append(state)
        for layer in range(len(self._places)):
            self._write(batch, layer, np.array(new))
            if on_layer is not None:
                on_layer(layer)
        wanted = batch.logit_rows.tolist()
        logits = torch.zeros(len(wanted), self.vocab_size)
        for index, at in enumerate(wanted):
            row = next(row for row, span in enumerate(rows) if span.start <= at < span.stop)
            best = self._digest(batch, row, int(batch.positions[at])) % self.vocab_size
            logits[index, best] = 1.0
        return logits

    def _write(self, batch: StepBatch, layer: int, new_T: np.ndarray) -> None:
        group, at = self._places[layer]
        slots = batch.views[group].slots.numpy()
        pages, offsets = slots // self.layout.page_size, slots % self.layout.page_size
        self._pool[at, pages, :, offsets] = (new_T + layer)[:, None, None, None]

    def _digest(self, batch: StepBatch, row: int, position: int) -> int:
        digest = 0
        for layer in range(len(self._places)):
            first = first_visible(self.layout.groups[self._places[layer][0]], position)
            states = self._read(batch, layer, row, first, position + 1)
            digest += (layer + 1) * int((np.arange(first + 1, position + 2) * states).sum())
        return digest % MODULUS

    def _read(self, batch: StepBatch, layer: int, row: int, start: int, end: int) -> np.ndarray:
        """States of positions [start, end), which must agree in K and V."""
        group, at = self._places[layer]
        view = batch.views[group]
        gone = batch.seq_lens_host[row] - view.seq_lens_host[row]
        assert gone % self.layout.page_size == 0
        assert gone <= start, "tokens attend to what is gone"
        positions = np.arange(start, end) - gone
        table = view.page_table[row].numpy()
        pages, offsets = table[positions // self.layout.page_size], positions % self.layout.page_size
        held = self._pool[at, pages, :, offsets].reshape(len(positions), -1).astype(np.int64) - layer
        assert (held == held[:, :1]).all(), "K and V of a token are not of one"
        return held[:, 0]
