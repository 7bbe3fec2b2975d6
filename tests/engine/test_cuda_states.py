"""States on a GPU: FlashInfer's functions for single tokens, by stand-ins with its contracts; and without them."""

from __future__ import annotations

from dataclasses import replace

import flashinfer_double
import pytest
import torch
from paged_rows import make_batch
from test_cpu_mixers import delta, mamba2, randn

from baton.core.layout import STATE, CacheGroup, KvLayout
from baton.engine.cuda.states import GpuStates, Updates, flashinfer_updates
from baton.engine.state_store import States, StateStore, state_bytes

CPU = torch.device("cpu")
ROWS = 3
KINDS = ["mamba2", "delta"]


def refuses(*args, **kwargs) -> torch.Tensor:
    raise ValueError("no kernel for these sizes")


def wrong(state, x, *args, **kwargs) -> torch.Tensor:
    return torch.zeros_like(x)


class Layer:
    """A layer with states in a pool, and what calls of FlashInfer there were."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(4)
        make, sizes = (mamba2, (4, 16, 2, 16, 2)) if kind == "mamba2" else (delta, (2, 4, 128, 128, 4))
        self.mixer, self.parts, self.width = make(torch.bfloat16, sizes)
        layout = KvLayout("", "bfloat16", 1, 4, 1, 64)
        self.pages = -(-state_bytes(self.parts) // layout.page_bytes)
        self.layout = replace(layout, groups=(CacheGroup(STATE, self.pages, (0,)),))
        self.pool = randn(1, ROWS * self.pages, 2, 4, 1, 64, dtype=torch.bfloat16)
        self.calls = 0

    def store(self) -> StateStore:
        return StateStore(self.layout, {0: self.parts})

    def counted(self, update):
        def call(*args, **kwargs):
            self.calls += 1
            return update(*args, **kwargs)

        return call

    def on_gpu(self, mamba2=flashinfer_double.selective_state_update) -> GpuStates:
        updates = Updates(self.counted(mamba2), self.counted(flashinfer_double.gated_delta_rule_decode))
        states = GpuStates(self.store(), {0: self.mixer}, updates, self.width, CPU)
        self.calls = 0
        return states

    def run(self, states: States, new: int) -> list[torch.Tensor]:
        """What comes out of a step of so many tokens of each row, and the pool after it."""
        pool, batch = self.pool.clone(), make_batch([([1] * new, 7, [0] * 8)] * ROWS, 4, True)
        table = torch.arange(ROWS * self.pages).view(ROWS, self.pages)
        states.bind_pool(pool)
        states.plan(replace(batch, views=(replace(batch, state_sources=table, state_targets=table),)))
        x = randn(ROWS * new, self.width, dtype=torch.bfloat16)
        return [states.mixed(0, self.mixer, x).float(), pool.view(torch.uint8)]


def both(layer: Layer, states: States, new: int = 1) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(5)
    ours = layer.run(states, new)
    torch.manual_seed(5)
    return ours, layer.run(layer.store(), new)


@pytest.mark.parametrize("kind", KINDS)
def test_single_tokens_by_flashinfer(kind: str) -> None:
    layer = Layer(kind)
    ours, theirs = both(layer, layer.on_gpu())
    assert layer.calls == 1
    assert (ours[0] - theirs[0]).norm() < 0.01 * theirs[0].norm()
    state = [each.view(ROWS, -1)[:, layer.parts[0].nbytes :] for each in (ours[1], theirs[1])]
    ours_h, theirs_h = (each[:, : layer.parts[1].nbytes].contiguous().view(torch.float32) for each in state)
    assert (ours_h - theirs_h).norm() < 0.005 * theirs_h.norm()  # torch rounds how much is written to bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_by_torch(kind: str) -> None:
    layer = Layer(kind)
    ours, theirs = both(layer, layer.on_gpu(), new=5)
    assert layer.calls == 0
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("update", [refuses, wrong])
def test_what_fails_when_tried_is_not_used(update) -> None:
    layer = Layer("mamba2")
    ours, theirs = both(layer, layer.on_gpu(update))
    assert layer.calls == 0
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_functions_are_looked_for_where_mixers_need_them() -> None:
    """FlashInfer is not installed here."""
    assert flashinfer_updates([]) == flashinfer_updates([Layer("delta").mixer]) == Updates(None, None)
