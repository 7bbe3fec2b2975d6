"""Mamba's mixer in place of attention: a recurrence per channel (Gu and Dao 2023, arXiv 2312.00752).

    x, gate = in(input)    x = silu(short convolution of x)    r, b, c = selected(x)    d = softplus(step(r) + bias)
    h[t] = exp(d A) h[t - 1] + d x[t] b[t]^T      y[t] = h[t] c[t] + D x[t]      output: y * silu(gate)

Some families norm r, b and c. The recurrence is in float32, and goes token by token: what is left of a state differs
from element to element, so that several tokens are no matrix product as in Mamba2. The output matrix is the layer's.
Its state is `h`, and what the convolution needs of the tokens before.

    T  tokens of all rows    R  rows    I  channels    N  size of a channel's state    W  width of the convolution
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from baton.engine.model.mamba_config import Mamba1Config
from baton.engine.model.pointwise import Norm, normalize
from baton.engine.model.projection import Projection
from baton.engine.model.recurrence import recur
from baton.engine.model.short_conv import conv_state, convolve
from baton.engine.state_store import StatePart, StateStore


def mamba1_state(config: Mamba1Config, dtype: torch.dtype) -> tuple[StatePart, ...]:
    """What a layer keeps for each row."""
    recurrent = StatePart((config.inner, config.state), torch.float32)
    return conv_state(config.inner, config.width, dtype), recurrent


@dataclass(frozen=True, slots=True)
class Mamba1:
    """The mixer of one layer."""

    config: Mamba1Config
    input: Projection  # E -> 2 I: x, gate
    conv_WI: torch.Tensor
    conv_bias_I: torch.Tensor | None
    selected: Projection  # I -> rank + 2 N: r, b, c
    norms: tuple[Norm, Norm, Norm] | None  # of these
    step: Projection  # rank -> I
    step_bias_I: torch.Tensor  # float32
    a_IN: torch.Tensor  # float32, negative
    d_I: torch.Tensor  # float32

    def mixed(self, layer: int, x_TE: torch.Tensor, states: StateStore) -> torch.Tensor:
        """The output matrix's input, [T, I]. The states are read, and written."""
        x_TI, gate_TI = self.input(x_TE).chunk(2, dim=-1)
        conv_RPI, state_RIN = states.read(layer)
        x_TI, conv_RPI = convolve(x_TI, conv_RPI, self.conv_WI, states)
        x_TI = F.silu(x_TI if self.conv_bias_I is None else x_TI + self.conv_bias_I)
        rate_TX, b_TN, c_TN = self.select(x_TI)
        inputs = Mamba1Inputs(
            x_TI=x_TI.float(),
            b_TN=b_TN.float(),
            c_TN=c_TN.float(),
            step_TI=F.softplus(self.step(rate_TX).float() + self.step_bias_I),
        )
        y_TI = torch.empty_like(inputs.x_TI)
        recur(inputs, state_RIN, states.rows.q_lens, y_TI, self._one_each, self._chunk)
        states.write(layer, (conv_RPI, state_RIN))
        return ((y_TI + inputs.x_TI * self.d_I) * F.silu(gate_TI.float())).to(x_TE.dtype)

    def select(self, x_TI: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """r, b and c."""
        config = self.config
        parts = self.selected(x_TI).split((config.rank, config.state, config.state), dim=-1)
        if self.norms is None or config.norm_eps is None:
            return parts
        eps = config.norm_eps
        return tuple(normalize(part, norm, eps) for part, norm in zip(parts, self.norms, strict=True))

    def _one_each(self, new: Mamba1Inputs, state_RIN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A token of each row."""
        left_RIN = (new.step_TI[..., None] * self.a_IN).exp()
        state_RIN = state_RIN * left_RIN + (new.step_TI * new.x_TI)[..., None] * new.b_TN[:, None]
        return (state_RIN @ new.c_TN[..., None])[..., 0], state_RIN

    def _chunk(self, new: Mamba1Inputs, state_IN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Some tokens of one row."""
        y_TI, state_1IN = torch.empty_like(new.x_TI), state_IN[None]
        for token in range(len(y_TI)):
            one = slice(token, token + 1)
            y_TI[one], state_1IN = self._one_each(new.at(one), state_1IN)
        return y_TI, state_1IN[0]


@dataclass(frozen=True, slots=True)
class Mamba1Inputs:
    """What the recurrence takes of each token, float32."""

    x_TI: torch.Tensor
    b_TN: torch.Tensor
    c_TN: torch.Tensor
    step_TI: torch.Tensor

    def at(self, where: slice | torch.Tensor) -> Mamba1Inputs:
        return Mamba1Inputs(self.x_TI[where], self.b_TN[where], self.c_TN[where], self.step_TI[where])
