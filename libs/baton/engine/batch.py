"""One step's batch on the device, and what runs it.

Shapes: T new tokens of all rows together, R rows, P pages in the longest row's page table, V vocabulary.
Rows are ragged: row r's new tokens are `q_starts[r]:q_starts[r + 1]` of the flat arrays, in order of position.
`cached_len + extend_len == seq_len` for every row; a decode row has extend_len 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from baton.core.layout import KvLayout


@dataclass(slots=True)
class StepBatch:
    """`views`: where the layout has groups of layers, the batch as each of them sees it, with slots and pages of its
    own. To layers that attend to a part of their past, rows begin with the first page that they still have. Those that
    keep states have pages to read and to write them, instead of slots and tables."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    slots: torch.Tensor  # int64 [T]: page_id * page_size + offset, where K and V of each token go
    q_starts: torch.Tensor  # int32 [R + 1]
    seq_lens: torch.Tensor  # int32 [R]: tokens whose K and V are valid once this step has written its own
    page_table: torch.Tensor  # int32 [R, P]: page ids, padded with 0
    logit_rows: torch.Tensor  # int64 [L]: indices into T whose logits are wanted, rising
    q_lens_host: list[int]  # the same lengths on the host: planning never reads the device
    seq_lens_host: list[int]
    views: tuple[StepBatch, ...] = ()
    state_sources: torch.Tensor | None = None  # int64 [R, k]: pages of states; any, for rows that begin with token 0
    state_targets: torch.Tensor | None = None  # int64 [R, k]; may be the same

    @property
    def is_decode(self) -> bool:
        """Whether every row has one new token, whose logits are wanted."""
        return len(self.token_ids) == len(self.q_lens_host) == len(self.logit_rows)


class ModelRunner(Protocol):
    """Runs a model over the paged pool. Knows no requests."""

    vocab_size: int
    layout: KvLayout
    max_context_tokens: int
    eos_token_ids: frozenset[int]

    def bind_pool(self, pool: torch.Tensor) -> None:
        """Use `pool`, shape [layers, pages, 2, page_size, kv_heads, head_dim], for K and V from now on."""

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Write K and V of the batch's tokens, and return float32 logits [L, V] of `batch.logit_rows`.

        `on_layer(l)` is called once, when all that layer l keeps of the batch's tokens is in the pool: K and V, and
        the state after them.
        """
