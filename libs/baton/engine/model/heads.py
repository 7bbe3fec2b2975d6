"""From a layer's input to queries, keys and values, and from what was attended to what the output matrix takes.

`SplitHeads` is what most families do. `LatentHeads` is multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2"):
a token's keys and values of all heads are made from one short vector, its latent. That is what is cached, and attended
to as it is: queries are brought to its space instead of keys out of it, and values are made of attended latents.

    T  tokens     H  query heads        P  part of a head that is not rotated    L  kv_lora_rank, of a latent
    E  hidden     K  key/value heads    R  part that is                          V  v_head_dim    D  head_dim
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from baton.engine.model.decoder_config import LatentConfig
from baton.engine.model.pointwise import Heads, Norm, Pointwise, normalize
from baton.engine.model.projection import Projection
from baton.engine.model.rope import rotate

_LATENT_EPS = 1e-6  # not the model's norm_eps


class AttentionHeads(Protocol):
    """The heads of one layer."""

    def of(self, x_TE: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor, pointwise: Pointwise) -> Heads:
        """Queries, and what goes into the cache as K and V, rotated."""

    def attended(self, attended_THD: torch.Tensor, x_TE: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        """The output matrix's input, [T, N], of what attention returns and the layer's input."""


@dataclass(frozen=True, slots=True)
class SplitHeads:
    """Queries, keys and values by one matrix."""

    qkv: Projection  # E -> (H + 2 K) D: queries, keys, values
    q_norm: Norm | None
    k_norm: Norm | None
    gate: Projection | None = None  # E -> H D: how much of what is attended to counts

    def of(self, x_TE: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor, pointwise: Pointwise) -> Heads:
        return pointwise.rotate(self.qkv(x_TE), cos_T1D, sin_T1D, self.q_norm, self.k_norm)

    def attended(self, attended_THD: torch.Tensor, x_TE: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        attended_TN = attended_THD.flatten(1)
        return attended_TN if self.gate is None else pointwise.weigh(attended_TN, self.gate(x_TE))


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """Queries [T, H, L + R]; of the cached vector, the latent and one rotated key part, K has the first half and V the
    second, each [T, 1, (L + R) / 2]. Attention returns latents, [T, H, L]."""

    config: LatentConfig
    q_down: Projection | None  # E -> q_lora_rank
    q_down_norm: Norm | None
    q_up: Projection  # q_lora_rank, or E -> H (P + R)
    kv_down: Projection  # E -> L + R
    kv_norm: Norm
    k_up_HPL: torch.Tensor
    v_up_HLV: torch.Tensor

    def of(self, x_TE: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor, pointwise: Pointwise) -> Heads:
        config = self.config
        short = x_TE
        if self.q_down is not None and self.q_down_norm is not None:
            short = normalize(self.q_down(x_TE), self.q_down_norm, _LATENT_EPS)
        q_THD = self.q_up(short).unflatten(1, (-1, config.plain + config.rotated))
        plain_THP, turning_THR = q_THD.split((config.plain, config.rotated), dim=-1)
        into_latents_THL = torch.bmm(plain_THP.transpose(0, 1), self.k_up_HPL).transpose(0, 1)
        q_THX = torch.cat((into_latents_THL, rotate(turning_THR, cos_T1D, sin_T1D)), dim=-1)
        latent_TL, turning_TR = self.kv_down(x_TE).split((config.rank, config.rotated), dim=-1)
        latent_TL = normalize(latent_TL, self.kv_norm, _LATENT_EPS)
        cached_T1X = torch.cat((latent_TL[:, None], rotate(turning_TR[:, None], cos_T1D, sin_T1D)), dim=-1)
        k_T1D, v_T1D = cached_T1X.chunk(2, dim=-1)
        return q_THX, k_T1D, v_T1D

    def attended(self, attended_THD: torch.Tensor, x_TE: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        return torch.bmm(attended_THD.transpose(0, 1), self.v_up_HLV).transpose(0, 1).flatten(1)
