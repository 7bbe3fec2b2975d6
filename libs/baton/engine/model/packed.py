"""Texts side by side without padding, each attending to all of itself: for models that read in both directions.

T  tokens of all texts    R  texts of one length    S  their length
H  query heads            K  key/value heads        D  head_dim
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from baton.engine.batch import StepBatch


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Texts in order of their lengths: those of one length are attended to together, as they lie in memory.

    `token_ids`, `positions` (from 0 in each text) and `segments` (1 in the second of a pair of texts) are int64 [T].
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    lengths: Sequence[int]


class PackedAttention:
    """Attention within each text, in both directions. Also an AttentionBackend, for decoders that read so."""

    def __init__(self, scale: float | None = None) -> None:
        """`scale`: of scores; None: head_dim ** -0.5."""
        self._scale = scale
        self._runs: list[tuple[int, int, int]] = []  # first token, texts, length

    def begin(self, lengths: Sequence[int]) -> None:
        """The lengths of the texts that `attend` gets until the next call."""
        self._runs = []
        start = 0
        for length, texts in itertools.groupby(lengths):
            count = len(list(texts))
            self._runs.append((start, count, length))
            start += count * length

    def attend(self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> torch.Tensor:
        """A new [T, H, D]."""
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        groups = q_THD.shape[1] // k_TKD.shape[1]
        for start, texts, length in self._runs:
            here = slice(start, start + texts * length)
            q_RHSD, k_RKSD, v_RKSD = (
                part[here].unflatten(0, (texts, length)).transpose(1, 2) for part in (q_THD, k_TKD, v_TKD)
            )
            if groups > 1:
                k_RKSD, v_RKSD = k_RKSD.repeat_interleave(groups, 1), v_RKSD.repeat_interleave(groups, 1)
            attended_RHSD = F.scaled_dot_product_attention(q_RHSD, k_RKSD, v_RKSD, scale=self._scale)
            out_THD[here] = attended_RHSD.transpose(1, 2).flatten(0, 1)
        return out_THD

    # --- AttentionBackend ---------------------------------------------------------------------------------------

    def bind_pool(self, pool: torch.Tensor) -> None:
        """No pages."""

    def plan(self, batch: StepBatch) -> None:
        self.begin(batch.q_lens_host)

    def write(self, layer: int, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> None:
        """Nothing is kept."""

    def run(self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> torch.Tensor:
        return self.attend(q_THD, k_TKD, v_TKD)
