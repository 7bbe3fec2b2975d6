"""What stands between the matrix products of a decoder: norms, rotation, gating. The protocol and the torch reference.

Rounding follows `transformers`: normalization in float32, everything else in the dtype of what comes in.

    T  tokens    E  hidden size    F  intermediate size    H  query heads    K  key/value heads    D  head_dim
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from baton.engine.model.config import DecoderConfig
from baton.engine.model.rope import rotate

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Pointwise(Protocol):
    """Operations token by token: a token's result does not depend on its companions."""

    def norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        """Each token scaled to unit root mean square, times `weight_E`: a new tensor."""

    def add_norm(
        self, x_TE: torch.Tensor, added_TE: torch.Tensor, weight_E: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x + added, and the norm of that. The caller gives up `x_TE`: the first result may be its memory."""

    def rotate(
        self,
        qkv_TN: torch.Tensor,
        cos_T1D: torch.Tensor,
        sin_T1D: torch.Tensor,
        q_norm_D: torch.Tensor | None,
        k_norm_D: torch.Tensor | None,
    ) -> Heads:
        """Queries [T, H, D], keys and values [T, K, D] of [T, (H + 2 K) D].

        Queries and keys are normed where there are weights for it, then rotated by angles [T, 1, D / 2] of the same
        dtype. The caller gives up `qkv_TN`, as in `add_norm`.
        """

    def gate(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, a new [T, F]."""


class TorchPointwise:
    """Plain torch operations, on any device and in any dtype."""

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config

    def norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        return rms_norm(x_TE, weight_E, self._config.norm_eps)

    def add_norm(
        self, x_TE: torch.Tensor, added_TE: torch.Tensor, weight_E: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total_TE = x_TE + added_TE
        return total_TE, self.norm(total_TE, weight_E)

    def rotate(
        self,
        qkv_TN: torch.Tensor,
        cos_T1D: torch.Tensor,
        sin_T1D: torch.Tensor,
        q_norm_D: torch.Tensor | None,
        k_norm_D: torch.Tensor | None,
    ) -> Heads:
        q_THD, k_TKD, v_TKD = split_heads(self._config, qkv_TN)
        if q_norm_D is not None and k_norm_D is not None:
            q_THD, k_TKD = self.norm(q_THD, q_norm_D), self.norm(k_TKD, k_norm_D)
        return rotate(q_THD, cos_T1D, sin_T1D), rotate(k_TKD, cos_T1D, sin_T1D), v_TKD

    def gate(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
        return F.silu(gate_TF) * up_TF


def split_heads(config: DecoderConfig, qkv_TN: torch.Tensor) -> Heads:
    """Views of the queries, keys and values in one matrix."""
    heads = qkv_TN.unflatten(1, (-1, config.head_dim))
    q_THD, k_TKD, v_TKD = heads.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
    return q_THD, k_TKD, v_TKD


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale x [..., n] to unit root mean square along its last dimension, in float32, then by `weight` [n]."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)
