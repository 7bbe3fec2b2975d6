"""Kimi's gated deltas in place of attention: each channel of a key is forgotten at its own pace (Kimi Team 2025, "Kimi
Linear", arXiv 2510.26692). Otherwise as `gated_delta`, whose recurrence this is, and whose state.

    q, k, v = silu(short convolution of what `input` makes)        of length one each q and k, q then over sqrt(K)
    w = sigmoid(written), d = exp(a softplus(left + bias))         how much is written, and is left of each channel
    output: norm(y) sigmoid(gate)

    T  tokens of all rows    R  rows    H  heads    K  size of a key, and of a value    W  width of the convolution
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from baton.engine.model.delta_config import GatedDeltaConfig
from baton.engine.model.gated_delta import DeltaInputs, gated_delta, of_length_one
from baton.engine.model.pointwise import Norm, normalize
from baton.engine.model.projection import Projection
from baton.engine.model.short_conv import convolve
from baton.engine.state_store import StateStore


@dataclass(frozen=True, slots=True)
class KimiDelta:
    """The mixer of one layer. What is left, and the gate, are made in two steps."""

    config: GatedDeltaConfig
    input: Projection  # E -> 3 H K: queries, keys, values
    written: Projection  # E -> H
    left: tuple[Projection, Projection]  # E -> K -> H K
    gate: tuple[Projection, Projection]  # E -> K -> H K
    conv_WC: torch.Tensor
    a_H1: torch.Tensor  # float32, negative
    bias_HK: torch.Tensor  # float32
    norm: Norm  # of each head by itself; float32

    def mixed(self, layer: int, x_TE: torch.Tensor, states: StateStore) -> torch.Tensor:
        """The output matrix's input, [T, H K]. The states are read, and written."""
        conv_RPC, state_RHKV = states.read(layer)
        qkv_TC, conv_RPC = convolve(self.input(x_TE), conv_RPC, self.conv_WC, states)
        q_THK, k_THK, v_THK = map(self._by_head, F.silu(qkv_TC).float().chunk(3, dim=-1))
        left_THK = self._by_head(self.left[1](self.left[0](x_TE))).float() + self.bias_HK
        inputs = DeltaInputs(
            q_THK=of_length_one(q_THK) * self.config.key_dim**-0.5,
            k_THK=of_length_one(k_THK),
            v_THV=v_THK,
            written_TH=self.written(x_TE).sigmoid().float(),
            decay_THX=F.softplus(left_THK) * self.a_H1,
        )
        y_THK = gated_delta(inputs, state_RHKV, states.rows.q_lens)
        states.write(layer, (conv_RPC, state_RHKV))
        normed_THK = normalize(y_THK.to(x_TE.dtype).float(), self.norm, self.config.eps)
        gate_THK = self._by_head(self.gate[1](self.gate[0](x_TE))).float().sigmoid()
        return (normed_THK * gate_THK).flatten(1).to(x_TE.dtype)

    def _by_head(self, x_TX: torch.Tensor) -> torch.Tensor:
        return x_TX.unflatten(1, (self.config.key_heads, -1))
