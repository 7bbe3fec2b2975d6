"""A model without weights whose outputs can be worked out by hand, and which notices every wrong page.

K and V of a token are one number, its state, which depends on the token, its position and the state of the token
before it, *as read back from the pool*. The next token is a digest of all states of the context, read back through
the page table, from all layers, K and V. So a page that is missing, stale, another request's, or short of one byte
changes the output; `toy_reference` says what it should be.

    state[p] = (31 * state[p - 1] + 7 * token[p] + p + 1) mod M        state[-1] = 0
    digest[p] = sum over q <= p of (q + 1) * state[q] mod M
    next token = digest[p] mod V

For tests of engines, workers and the whole system, on any CPU, at once. Not a mock: it runs under the real scheduler,
cache, pool and handoff.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

from baton.core.errors import ConfigError
from baton.core.layout import KvLayout
from baton.engine.batch import StepBatch

MODULUS = 65_521  # states are exact in float32
TOY_LAYOUT = KvLayout("toy", "float32", layers=2, page_size=4, kv_heads=1, head_dim=4)
TOY_VOCAB_SIZE = 101

Array = np.ndarray[Any, Any]


def toy_reference(
    prompt: Sequence[int], n: int, *, vocab_size: int = TOY_VOCAB_SIZE, eos_token_ids: Collection[int] = ()
) -> list[int]:
    """The `n` tokens that greedy decoding appends to `prompt`, or fewer, the last being an end-of-sequence token."""
    state = digest = 0
    output: list[int] = []
    tokens = list(prompt)
    position = 0
    while len(output) < n:
        while position < len(tokens):
            state = (31 * state + 7 * tokens[position] + position + 1) % MODULUS
            digest = (digest + (position + 1) * state) % MODULUS
            position += 1
        output.append(digest % vocab_size)
        tokens.append(output[-1])
        if output[-1] in eos_token_ids:
            break
    return output


class ToyRunner:
    """Implements baton.engine.batch.ModelRunner. The likeliest token's logit is 0, the following ids' ever lower."""

    def __init__(
        self,
        layout: KvLayout = TOY_LAYOUT,
        *,
        vocab_size: int = TOY_VOCAB_SIZE,
        max_context_tokens: int = 4096,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        if layout.dtype != "float32":
            raise ConfigError(f"the toy model computes in float32, not in {layout.dtype}")
        self.layout = layout
        self.vocab_size = vocab_size
        self.max_context_tokens = max_context_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self._pool: Array | None = None

    def bind_pool(self, pool: torch.Tensor) -> None:
        layout = self.layout
        if tuple(pool.shape[2:]) != (2, layout.page_size, layout.kv_heads, layout.head_dim):
            raise ConfigError(f"the pool's shape {tuple(pool.shape)} is not that of {layout}")
        self._pool = pool.numpy()

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        if self._pool is None:
            raise ConfigError("no pool is bound; call bind_pool before forward")
        tables = batch.page_table.numpy()
        starts = batch.q_starts.numpy()
        slots = batch.slots.numpy()
        for layer, pages in enumerate(self._pool):
            for row in range(len(tables)):
                new = slice(starts[row], starts[row + 1])
                before = int(batch.positions[new.start]) - 1
                state = self._state_at(pages, tables[row], before, layer) if before >= 0 else 0
                states = _states(state, batch.token_ids[new].tolist(), before + 1)
                self._write(pages, slots[new], states, layer)
            if on_layer is not None:
                on_layer(layer)
        digests = [self._digests(tables[row], seq_len) for row, seq_len in enumerate(batch.seq_lens_host)]
        wanted = batch.logit_rows.numpy()
        rows = np.searchsorted(starts, wanted, side="right") - 1
        best = [digests[row][int(batch.positions[at])] % self.vocab_size for at, row in zip(wanted, rows, strict=True)]
        return torch.from_numpy(self._logits(best))

    def _state_at(self, pages: Array, table: Array, position: int, layer: int) -> int:
        page, offset = divmod(position, self.layout.page_size)
        return (int(pages[table[page], 0, offset, 0, 0]) - layer) % MODULUS

    def _write(self, pages: Array, slots: Array, states: Array, layer: int) -> None:
        page, offset = slots // self.layout.page_size, slots % self.layout.page_size
        pages[page, 0, offset] = ((states + layer) % MODULUS)[:, None, None]
        pages[page, 1, offset] = ((MODULUS - 1 - states - layer) % MODULUS)[:, None, None]

    def _digests(self, table: Array, seq_len: int) -> Array:
        """Digest after each of the context's positions [seq_len], from every element that the pool holds of it."""
        assert self._pool is not None
        layout = self.layout
        used = -(-seq_len // layout.page_size)
        held = self._pool[:, table[:used]].astype(np.int64)  # [layers, pages, 2, page_size, heads, dim]
        elements = held.swapaxes(1, 2).reshape(layout.layers, 2, used * layout.page_size, -1)[:, :, :seq_len]
        layers = np.arange(layout.layers)[:, None, None]
        keys = (elements[:, 0] - layers) % MODULUS
        values = (MODULUS - 1 - elements[:, 1] - layers) % MODULUS
        states = keys[0, :, 0]
        # What disagrees with layer 0's first key element shifts the digest; weights keep errors from cancelling out.
        weights = np.arange(1, 1 + 2 * layout.layers * elements.shape[-1])
        every = np.concatenate((keys, values)).transpose(1, 0, 2).reshape(seq_len, -1)
        wrong = ((every - states[:, None]) * weights).sum(axis=1)
        return np.cumsum(((states * np.arange(1, seq_len + 1)) + wrong) % MODULUS) % MODULUS

    def _logits(self, best: list[int]) -> Array:
        ids = np.arange(self.vocab_size)
        distance = (ids[None, :] - np.array(best, dtype=np.int64)[:, None]) % self.vocab_size
        return (-0.5 * distance).astype(np.float32)


def _states(state: int, token_ids: list[int], position: int) -> Array:
    states = []
    for offset, token in enumerate(token_ids):
        state = (31 * state + 7 * token + position + offset + 1) % MODULUS
        states.append(state)
    return np.array(states, dtype=np.int64)
