"""What stands between the matrix products of a decoder: norms, rotation, gating. The protocol and the torch reference.

Rounding follows `transformers`: normalization in float32, everything else in the dtype of what comes in.

    T  tokens    E  hidden size    F  intermediate size    H  query heads    K  key/value heads    D  head_dim
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.rope import rotate

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Norm:
    """One normalization: by root mean square, or `centred`, by the deviation from the mean; then times `weight`.

    The product with a float32 weight is made in float32, and rounded then; with one of the dtype of what comes in,
    both factors are rounded. The weight of heads may be [D], or [heads, D].
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None  # float32
    centred: bool = False


class Pointwise(Protocol):
    """Operations token by token: a token's result does not depend on its companions."""

    def norm(self, x_TE: torch.Tensor, norm: Norm) -> torch.Tensor:
        """Each token normalized: a new tensor."""

    def add_norm(self, x_TE: torch.Tensor, added_TE: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """x + added, and the norm of that. The caller gives up `x_TE`: the first result may be its memory."""

    def rotate(
        self,
        qkv_TN: torch.Tensor,
        cos_T1D: torch.Tensor,
        sin_T1D: torch.Tensor,
        q_norm: Norm | None,
        k_norm: Norm | None,
    ) -> Heads:
        """Queries [T, H, D], keys and values [T, K, D] of [T, (H + 2 K) D].

        Queries and keys are normed where there are weights for it, then rotated by angles [T, 1, D / 2] of the same
        dtype. The caller gives up `qkv_TN`, as in `add_norm`.
        """

    def gate(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        """activation(gate) * up, a new [T, F]; of a model without gates, activation(up) of [T, F]."""

    def weigh(self, x_TN: torch.Tensor, gate_TN: torch.Tensor) -> torch.Tensor:
        """x * sigmoid(gate), a new tensor."""


class TorchPointwise:
    """Plain torch operations, on any device and in any dtype."""

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config

    def norm(self, x_TE: torch.Tensor, norm: Norm) -> torch.Tensor:
        return normalize(x_TE, norm, self._config.norm_eps)

    def add_norm(self, x_TE: torch.Tensor, added_TE: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        total_TE = x_TE + added_TE
        return total_TE, self.norm(total_TE, norm)

    def rotate(
        self,
        qkv_TN: torch.Tensor,
        cos_T1D: torch.Tensor,
        sin_T1D: torch.Tensor,
        q_norm: Norm | None,
        k_norm: Norm | None,
    ) -> Heads:
        q_THD, k_TKD, v_TKD = split_heads(self._config, qkv_TN)
        if q_norm is not None and k_norm is not None:
            q_THD, k_TKD = self._norm_heads(q_THD, q_norm), self._norm_heads(k_TKD, k_norm)
        return rotate(q_THD, cos_T1D, sin_T1D), rotate(k_TKD, cos_T1D, sin_T1D), v_TKD

    def gate(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        activate = ACTIVATIONS[self._config.activation]
        if not self._config.gated:
            return activate(gate_up_T2F)
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=-1)
        if self._config.clamped_swiglu is not None:
            alpha, limit = self._config.clamped_swiglu
            gate_TF, up_TF = gate_TF.clamp(max=limit), up_TF.clamp(-limit, limit)
            return (up_TF + 1) * (gate_TF * torch.sigmoid(gate_TF * alpha))
        return activate(gate_TF) * up_TF

    def weigh(self, x_TN: torch.Tensor, gate_TN: torch.Tensor) -> torch.Tensor:
        return x_TN * gate_TN.sigmoid()

    def _norm_heads(self, x_TND: torch.Tensor, norm: Norm) -> torch.Tensor:
        if self._config.qk_norm == "all":
            return self.norm(x_TND.flatten(1), norm).view(x_TND.shape)
        return self.norm(x_TND, norm)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def split_heads(config: DecoderConfig, qkv_TN: torch.Tensor) -> Heads:
    """Views of the queries, keys and values in one matrix."""
    heads = qkv_TN.unflatten(1, (-1, config.head_dim))
    q_THD, k_TKD, v_TKD = heads.split((config.heads, config.kv_heads, config.kv_heads), dim=1)
    return q_THD, k_TKD, v_TKD


def normalize(x: torch.Tensor, norm: Norm, eps: float) -> torch.Tensor:
    """x [..., n] normalized along its last dimension, in float32."""
    wide = x.float()
    if norm.centred:
        wide = wide - wide.mean(-1, keepdim=True)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if norm.weight.dtype == x.dtype:
        normed = normed.to(x.dtype)
    normed = norm.weight * normed
    return (normed if norm.bias is None else normed + norm.bias).to(x.dtype)
