"""The gated delta rule, in chunks and token by token, against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from baton.engine.model.gated_delta import DeltaInputs, gated_delta

torch.set_num_threads(1)


def inputs_of(tokens: int, heads: int, decay: float, channels: int) -> DeltaInputs:
    draw = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    return DeltaInputs(
        q_THK=torch.nn.functional.normalize(normal(tokens, heads, 8), dim=-1),
        k_THK=torch.nn.functional.normalize(normal(tokens, heads, 8) + 0.7, dim=-1),
        v_THV=normal(tokens, heads, 6),
        written_TH=2 * torch.rand((tokens, heads), generator=draw),
        decay_THX=-decay * torch.rand((tokens, heads, channels), generator=draw),
    )


def one_by_one(inputs: DeltaInputs, state_HKV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: forget, then correct what the state has for the key, then read."""
    state, read = state_HKV.double(), []
    for q, k, v, written, decay in zip(*(getattr(inputs, name).double() for name in inputs.__slots__), strict=True):
        state = state * decay.exp()[:, :, None]
        error = v - torch.einsum("hkv,hk->hv", state, k)
        state = state + torch.einsum("hk,hv->hkv", k, written[:, None] * error)
        read.append(torch.einsum("hkv,hk->hv", state, q))
    return torch.stack(read), state


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("decay", [0.0, 0.1, 30.0])
def test_rows_of_different_lengths(decay: float, channels: int) -> None:
    """Of heads whose channels decay together, and one by one."""
    q_lens = [1, 150, 2, 1, 64]
    inputs = inputs_of(sum(q_lens), 3, decay, channels)
    states = torch.randn((len(q_lens), 3, 8, 6), generator=torch.Generator().manual_seed(1))
    before = states.clone()
    got = gated_delta(inputs, states, q_lens)
    start = 0
    for row, q_len in enumerate(q_lens):
        read, after = one_by_one(inputs.at(slice(start, start + q_len)), before[row])
        torch.testing.assert_close(got[start : start + q_len], read.float(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(states[row], after.float(), atol=2e-5, rtol=1e-4)
        start += q_len
