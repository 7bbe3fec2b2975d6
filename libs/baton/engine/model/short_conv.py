"""A gated convolution over the last few tokens, channel by channel, in place of attention (LFM2, Liquid AI 2025).

    b, c, x = in(input)    y[t] = c[t] * (sum over j < W of w[j] * (b x)[t - W + 1 + j])

Its output matrix is the layer's. Its state is the products b x of the last W - 1 tokens.

    T  tokens of all rows    R  rows    E  hidden size    W  width of the convolution
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.engine.model.projection import Projection
from baton.engine.state_store import StatePart, StateStore
from baton.engine.transfer import indices


@dataclass(frozen=True, slots=True)
class ShortConv:
    """The convolution of one layer."""

    input: Projection  # E -> 3 E: b, c, x
    weight_WE: torch.Tensor
    bias_E: torch.Tensor | None

    def mixed(self, layer: int, x_TE: torch.Tensor, states: StateStore) -> torch.Tensor:
        """The output matrix's input, [T, E]. The states are read, and written."""
        b_TE, c_TE, inner_TE = self.input(x_TE).chunk(3, dim=-1)
        (before_RPE,) = states.read(layer)
        convolved_TE, after_RPE = convolve(b_TE * inner_TE, before_RPE, self.weight_WE, states)
        states.write(layer, (after_RPE,))
        return c_TE * (convolved_TE if self.bias_E is None else convolved_TE + self.bias_E)


def conv_state(channels: int, width: int, dtype: torch.dtype) -> StatePart:
    """What `convolve` keeps."""
    return StatePart((width - 1, channels), dtype)


def convolve(
    x_TE: torch.Tensor, before_RPE: torch.Tensor, weight_WE: torch.Tensor, states: StateStore
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row of `x_TE` convolved, after the W - 1 tokens `before_RPE` it; and the last W - 1 of each. Summed in
    float32, and rounded once."""
    rows, past = states.rows, len(weight_WE) - 1
    count = len(rows.q_lens)
    # Each row after what was before it.
    line = x_TE.new_empty((len(x_TE) + count * past, x_TE.shape[1]), dtype=torch.float32)
    weight_WE = weight_WE.float()
    place_T = torch.arange(len(x_TE), device=x_TE.device) + (rows.row_of_T + 1) * past
    end_R = torch.cumsum(indices(rows.q_lens, x_TE.device) + past, 0)
    steps_P = torch.arange(past, device=x_TE.device)
    start_R = torch.cat((end_R.new_zeros(1), end_R[:-1]))
    line[place_T] = x_TE.float()
    line[(start_R[:, None] + steps_P)] = before_RPE.float()
    convolved_TE = line[place_T] * weight_WE[past]
    for tap in range(past):
        convolved_TE = convolved_TE + line[place_T - past + tap] * weight_WE[tap]
    return convolved_TE.to(x_TE.dtype), line[end_R[:, None] - past + steps_P].to(x_TE.dtype)
