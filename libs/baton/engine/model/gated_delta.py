"""Gated delta networks in place of attention (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464).

    q, k, v = silu(short convolution of what `input` makes)        of length one each q and k, q then over sqrt(K)
    w = sigmoid(..), d = exp(a softplus(.. + bias)) of `rates`     how much is written, and is left
    u[t] = w (v[t] - d S[t - 1]^T k[t])    S[t] = d S[t - 1] + k[t] u[t]^T    y[t] = S[t]^T q[t]
    output: norm(y) silu(gate)

A state maps keys to values; a token corrects what the state has for its key. d is a number for each head; in Kimi's
variant (Kimi Team 2025, arXiv 2510.26692) one for each channel of the keys. All of that is in float32. Several tokens
of a row go in chunks: what each of them writes depends on what those before it wrote, which is one triangular system
for a chunk. The output matrix is the layer's. Its state is S, and what the convolution needs of the tokens before.

    T  tokens of all rows    R  rows    H  heads of values    K  size of a key    V  of a value    L  tokens of a chunk
    W  width of the convolution         C  its channels       I  H V       X  1; K where channels decay one by one
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from baton.engine.model.delta_config import GatedDeltaConfig
from baton.engine.model.pointwise import Norm, normalize
from baton.engine.model.projection import Projection
from baton.engine.model.recurrence import CHUNK, left_of, recur
from baton.engine.model.short_conv import conv_state, convolve
from baton.engine.state_store import StatePart, StateStore

_LENGTH_EPS = 1e-6
_CHANNELS_CHUNK = 16  # each pair of tokens of a chunk has K numbers there


def gated_delta_state(config: GatedDeltaConfig, dtype: torch.dtype) -> tuple[StatePart, ...]:
    """What a layer keeps for each row."""
    recurrent = StatePart((config.value_heads, config.key_dim, config.value_dim), torch.float32)
    return conv_state(config.channels, config.width, dtype), recurrent


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """The mixer of one layer."""

    config: GatedDeltaConfig
    input: Projection  # E -> C + I: queries, keys, values, gates
    rates: Projection  # E -> 2 H: how much is written, how much is left
    conv_WC: torch.Tensor
    a_H: torch.Tensor  # float32, negative
    bias_H: torch.Tensor  # float32
    norm: Norm  # of each head by itself

    def mixed(self, layer: int, x_TE: torch.Tensor, states: StateStore) -> torch.Tensor:
        """The output matrix's input, [T, I]. The states are read, and written."""
        config = self.config
        qkv_TC, gate_TI = self.input(x_TE).split((config.channels, config.values), dim=-1)
        written_TH, left_TH = self.rates(x_TE).chunk(2, dim=-1)
        conv_RPC, state_RHKV = states.read(layer)
        qkv_TC, conv_RPC = convolve(qkv_TC, conv_RPC, self.conv_WC, states)
        q_TX, k_TX, v_TI = F.silu(qkv_TC).float().split((config.keys, config.keys, config.values), dim=-1)
        inputs = DeltaInputs(
            q_THK=self._by_head(q_TX) * config.key_dim**-0.5,
            k_THK=self._by_head(k_TX),
            v_THV=v_TI.unflatten(1, (config.value_heads, -1)),
            written_TH=written_TH.sigmoid().float() * (2.0 if config.doubled else 1.0),
            decay_THX=(F.softplus(left_TH.float() + self.bias_H) * self.a_H)[..., None],
        )
        y_THV = gated_delta(inputs, state_RHKV, states.rows.q_lens)
        states.write(layer, (conv_RPC, state_RHKV))
        return self.gated(y_THV, gate_TI)

    def gated(self, y_THV: torch.Tensor, gate_TI: torch.Tensor) -> torch.Tensor:
        """The output matrix's input, in the dtype of the gates."""
        normed_THV = normalize(y_THV.to(gate_TI.dtype), self.norm, self.config.eps)
        return (normed_THV.flatten(1).float() * F.silu(gate_TI.float())).to(gate_TI.dtype)

    def _by_head(self, shared_TX: torch.Tensor) -> torch.Tensor:
        """[T, H, K] of queries or keys that several heads share, of length one each."""
        config = self.config
        shared = of_length_one(shared_TX.unflatten(1, (config.key_heads, -1)))
        return shared.repeat_interleave(config.value_heads // config.key_heads, dim=1)


def of_length_one(x: torch.Tensor) -> torch.Tensor:
    """x [..., K], each divided by its length."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _LENGTH_EPS)


@dataclass(frozen=True, slots=True)
class DeltaInputs:
    """What the recurrence takes of each token, float32."""

    q_THK: torch.Tensor
    k_THK: torch.Tensor
    v_THV: torch.Tensor
    written_TH: torch.Tensor
    decay_THX: torch.Tensor  # logarithm of what is left of a state

    def at(self, where: slice | torch.Tensor) -> DeltaInputs:
        return DeltaInputs(self.q_THK[where], self.k_THK[where], self.v_THV[where], self.written_TH[where],
                           self.decay_THX[where])  # fmt: skip


def gated_delta(inputs: DeltaInputs, state_RHKV: torch.Tensor, q_lens: list[int]) -> torch.Tensor:
    """S[t]^T q[t] of all tokens, [T, H, V]. `state_RHKV` is brought from before each row's tokens to after them."""
    y_THV = torch.empty_like(inputs.v_THV)
    chunk_tokens = CHUNK if inputs.decay_THX.shape[-1] == 1 else _CHANNELS_CHUNK
    recur(inputs, state_RHKV, q_lens, y_THV, _one_each, _chunk, chunk_tokens)
    return y_THV


def _one_each(new: DeltaInputs, state_RHKV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row."""
    left_RHX = new.decay_THX.exp()
    found_RH2V = torch.stack((new.k_THK * left_RHX, new.q_THK * left_RHX), dim=2) @ state_RHKV
    write_RHV = (new.v_THV - found_RH2V[:, :, 0]) * new.written_TH[..., None]
    own_RH1 = (new.q_THK * new.k_THK).sum(-1, keepdim=True)
    state_RHKV = state_RHKV * left_RHX[..., None] + new.k_THK[..., None] * write_RHV[:, :, None]
    return found_RH2V[:, :, 1] + own_RH1 * write_RHV, state_RHKV


def _chunk(new: DeltaInputs, state_HKV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Some tokens of one row."""
    total_HLX, left_HLLX = left_of(new.decay_THX)
    q_HLK, k_HLK, v_HLV = (each.transpose(0, 1) for each in (new.q_THK, new.k_THK, new.v_THV))
    written_HL1, before_HLX = new.written_TH.T[..., None], total_HLX.exp()
    found_HLV = (before_HLX * k_HLK) @ state_HKV
    system_HLL = written_HL1 * _meeting(k_HLK, k_HLK, left_HLLX)  # its diagonal counts as ones
    write_HLV = torch.linalg.solve_triangular(
        system_HLL, written_HL1 * (v_HLV - found_HLV), upper=False, unitriangular=True
    )
    y_HLV = (before_HLX * q_HLK) @ state_HKV + _meeting(q_HLK, k_HLK, left_HLLX) @ write_HLV
    after_HLX = (total_HLX[:, -1:] - total_HLX).exp()
    state_HKV = state_HKV * total_HLX[:, -1].exp()[..., None] + (k_HLK * after_HLX).transpose(1, 2) @ write_HLV
    return y_HLV.transpose(0, 1), state_HKV


def _meeting(x_HLK: torch.Tensor, k_HLK: torch.Tensor, left_HLLX: torch.Tensor) -> torch.Tensor:
    """What the queries or keys `x_HLK` find of each key, [H, L, L], of which so much is left."""
    if left_HLLX.shape[-1] == 1:
        return left_HLLX[..., 0] * (x_HLK @ k_HLK.transpose(1, 2))
    return (x_HLK[:, :, None] * k_HLK[:, None] * left_HLLX).sum(-1)
