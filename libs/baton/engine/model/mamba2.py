"""Mamba2's mixer in place of attention: a linear recurrence per head (Dao and Gu 2024, "Transformers are SSMs").

    gate, xbc, dt = in(input)      x, b, c = silu(short convolution of xbc)      d = softplus(dt + bias)
    h[t] = exp(d A) h[t - 1] + d x[t] b[t]^T      y[t] = h[t] c[t] + D x[t]      output: norm(y * silu(gate))

Some families norm before they gate, or do not.

The recurrence is in float32. Several tokens of a row go in chunks: what its tokens tell each other, and what the state
before tells them. Its output matrix is the layer's. Its state is `h`, and what the
convolution needs of the tokens before.

    T  tokens of all rows    R  rows    H  heads    P  size of a head    G  groups of heads    N  size of a state
    W  width of the convolution         C  its channels, H P + 2 G N     I  H P               L  tokens of a chunk
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from baton.engine.model.mamba_config import NORM_FIRST, Mamba2Config
from baton.engine.model.pointwise import Norm, normalize
from baton.engine.model.projection import Projection
from baton.engine.model.recurrence import left_of, recur
from baton.engine.model.short_conv import conv_state, convolve
from baton.engine.state_store import StatePart, StateStore


def mamba2_state(config: Mamba2Config, dtype: torch.dtype) -> tuple[StatePart, ...]:
    """What a layer keeps for each row."""
    recurrent = StatePart((config.heads, config.head_dim, config.state), torch.float32)
    return conv_state(config.channels, config.width, dtype), recurrent


@dataclass(frozen=True, slots=True)
class Mamba2:
    """The mixer of one layer."""

    config: Mamba2Config
    input: Projection  # E -> I + C + H: gate, xbc, dt
    conv_WC: torch.Tensor
    conv_bias_C: torch.Tensor | None
    a_H: torch.Tensor  # float32, negative
    d_H: torch.Tensor  # float32
    dt_bias_H: torch.Tensor  # float32
    norm: Norm | None  # of each group by itself
    eps: float

    def mixed(self, layer: int, x_TE: torch.Tensor, states: StateStore) -> torch.Tensor:
        """The output matrix's input, [T, I]. The states are read, and written."""
        config = self.config
        gate_TI, xbc_TC, dt_TH = self.input(x_TE).split((config.inner, config.channels, config.heads), dim=-1)
        conv_RPC, state_RHPN = states.read(layer)
        xbc_TC, conv_RPC = convolve(xbc_TC, conv_RPC, self.conv_WC, states)
        xbc_TC = F.silu(xbc_TC if self.conv_bias_C is None else xbc_TC + self.conv_bias_C).float()
        shared = config.groups * config.state
        x_TI, b_TS, c_TS = xbc_TC.split((config.inner, shared, shared), dim=-1)
        step_TH = F.softplus(dt_TH.float() + self.dt_bias_H)
        inputs = _Inputs(
            x_THP=x_TI.unflatten(1, (config.heads, -1)),
            b_THN=self._by_head(b_TS),
            c_THN=self._by_head(c_TS),
            step_TH=step_TH,
            decay_TH=step_TH * self.a_H,
        )
        y_THP = scan(inputs, state_RHPN, states.rows.q_lens)
        states.write(layer, (conv_RPC, state_RHPN))
        return self.gated((y_THP + inputs.x_THP * self.d_H[:, None]).flatten(1), gate_TI)

    def gated(self, y_TI: torch.Tensor, gate_TI: torch.Tensor) -> torch.Tensor:
        """The output matrix's input, in the dtype of the gates, of float32 `y_TI`."""
        dtype, gate_TI = gate_TI.dtype, F.silu(gate_TI.float())
        if self.norm is None:
            return (y_TI * gate_TI).to(dtype)
        if self.config.gating == NORM_FIRST:
            return (self._normed(y_TI, self.norm, torch.float32) * gate_TI).to(dtype)
        return self._normed(y_TI.to(dtype).float() * gate_TI, self.norm, dtype)

    def _by_head(self, shared_TS: torch.Tensor) -> torch.Tensor:
        """[T, H, N] of what the heads of a group share."""
        config = self.config
        return shared_TS.unflatten(1, (config.groups, -1)).repeat_interleave(config.heads // config.groups, dim=1)

    def _normed(self, y_TI: torch.Tensor, norm: Norm, dtype: torch.dtype) -> torch.Tensor:
        groups = self.config.groups
        plain = Norm(torch.ones(y_TI.shape[1] // groups, device=y_TI.device))
        return norm.weight * normalize(y_TI.unflatten(1, (groups, -1)), plain, self.eps).flatten(1).to(dtype)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the recurrence takes of each token, float32."""

    x_THP: torch.Tensor
    b_THN: torch.Tensor
    c_THN: torch.Tensor
    step_TH: torch.Tensor
    decay_TH: torch.Tensor  # logarithm of what is left of a state

    def at(self, where: slice | torch.Tensor) -> _Inputs:
        return _Inputs(self.x_THP[where], self.b_THN[where], self.c_THN[where], self.step_TH[where],
                       self.decay_TH[where])  # fmt: skip


def scan(inputs: _Inputs, state_RHPN: torch.Tensor, q_lens: list[int]) -> torch.Tensor:
    """h[t] c[t] of all tokens, [T, H, P]. `state_RHPN` is brought from before each row's tokens to after them."""
    y_THP = torch.empty_like(inputs.x_THP)
    recur(inputs, state_RHPN, q_lens, y_THP, _one_each, _chunk)
    return y_THP


def _one_each(new: _Inputs, state_RHPN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of each row."""
    scaled_RHP = new.x_THP * new.step_TH[..., None]
    state_RHPN = state_RHPN * new.decay_TH.exp()[..., None, None] + scaled_RHP[..., None] * new.b_THN[:, :, None]
    return (state_RHPN @ new.c_THN[..., None])[..., 0], state_RHPN


def _chunk(new: _Inputs, state_HPN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Some tokens of one row."""
    total_HL, weight_HLL = left_of(new.decay_TH)
    b_HLN, c_HLN = new.b_THN.transpose(0, 1), new.c_THN.transpose(0, 1)
    x_HLP = (new.x_THP * new.step_TH[..., None]).transpose(0, 1)
    y_HLP = (weight_HLL * (c_HLN @ b_HLN.transpose(1, 2))) @ x_HLP
    y_HLP = y_HLP + total_HL.exp()[..., None] * (c_HLN @ state_HPN.transpose(1, 2))
    left_HL = (total_HL[:, -1:] - total_HL).exp()
    state_HPN = state_HPN * total_HL[:, -1].exp()[:, None, None] + (x_HLP * left_HL[..., None]).transpose(1, 2) @ b_HLN
    return y_HLP.transpose(0, 1), state_HPN
