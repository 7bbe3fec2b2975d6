"""Mixers of layers that keep a state: the CPU kernels against the torch operations, over pages as they come."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from paged_rows import make_batch

from baton.core.layout import STATE, CacheGroup, KvLayout
from baton.engine.batch import StepBatch
from baton.engine.cpu.build import COMPILERS, runnable_variants
from baton.engine.cpu.library import open_kernels
from baton.engine.cpu.mixers import knows
from baton.engine.cpu.states import CpuStates
from baton.engine.model.delta_config import GatedDeltaConfig
from baton.engine.model.gated_delta import GatedDelta, gated_delta_state
from baton.engine.model.mamba1 import Mamba1, mamba1_state
from baton.engine.model.mamba2 import Mamba2, mamba2_state
from baton.engine.model.mamba_config import NO_NORM, NORM_FIRST, NORM_LAST, Mamba1Config, Mamba2Config
from baton.engine.model.pointwise import Norm
from baton.engine.model.projection import Linear
from baton.engine.model.short_conv import ShortConv, conv_state
from baton.engine.state_store import Mixer, StatePart, States, StateStore, state_bytes
from baton.runtime import environ

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.bfloat16]
# Of the root mean square. Sums are taken in another order, and bfloat16 convolutions are rounded once, not tap by tap.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
# New tokens of each row, and tokens that it has before them.
ROWS = [(1, 0), (1, 7), (5, 0), (1, 1), (37, 33), (2, 1), (1, 50)]
# Mixers with small sizes, odd ones, and with more than a vector has lanes.
SHAPES = [
    "conv 2",
    "conv 3",
    "conv 4",
    "mamba1",
    "mamba1 odd",
    "mamba2",
    "mamba2 odd",
    "mamba2 wide",
    "delta",
    "delta odd",
    "delta wide",
]


@pytest.fixture(scope="module", params=runnable_variants())
def kernels(request):
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    return open_kernels(environ.cache_dir() / "kernels", request.param)


def randn(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size).to(dtype)


def conv(dtype: torch.dtype, width: int) -> tuple[Mixer, tuple[StatePart, ...], int]:
    mixer = ShortConv(lambda x: x, randn(width, 144, dtype=dtype), randn(144, dtype=dtype) if width == 3 else None)
    return mixer, (conv_state(144, width, dtype),), 3 * 144


def mamba1(dtype: torch.dtype, inner: int, state: int) -> tuple[Mixer, tuple[StatePart, ...], int]:
    config = Mamba1Config(inner, state, 8, 4, True, False, 1e-5, True, (0,))
    selected, step = randn(8 + 2 * state, inner, dtype=dtype) / 16, randn(inner, 8, dtype=dtype) / 4
    mixer = Mamba1(
        config=config,
        input=lambda x: x,
        conv_WI=randn(4, inner, dtype=dtype),
        conv_bias_I=randn(inner, dtype=dtype),
        selected=Linear(selected),
        norms=tuple(Norm(randn(size, dtype=dtype)) for size in (8, state, state)) if state == 16 else None,
        step=Linear(step),
        step_bias_I=randn(inner),
        a_IN=-torch.rand(inner, state) - 0.1,
        d_I=randn(inner),
    )
    return mixer, mamba1_state(config, dtype), 2 * inner


def mamba2(dtype: torch.dtype, sizes: tuple[int, int, int, int, int]) -> tuple[Mixer, tuple[StatePart, ...], int]:
    heads, head_dim, groups, state, width = sizes
    gating = {2: NORM_LAST, 3: NORM_FIRST, 4: NO_NORM}[width]
    config = Mamba2Config(heads, head_dim, groups, state, width, True, False, False, gating, (0,))
    mixer = Mamba2(
        config=config,
        input=lambda x: x,
        conv_WC=randn(width, config.channels, dtype=dtype),
        conv_bias_C=randn(config.channels, dtype=dtype),
        a_H=-torch.rand(heads) - 0.1,
        d_H=randn(heads),
        dt_bias_H=randn(heads),
        norm=None if gating == NO_NORM else Norm(randn(config.inner, dtype=dtype)),
        eps=1e-5,
    )
    return mixer, mamba2_state(config, dtype), config.inner + config.channels + heads


def delta(dtype: torch.dtype, sizes: tuple[int, int, int, int, int]) -> tuple[Mixer, tuple[StatePart, ...], int]:
    key_heads, heads, key_dim, value_dim, width = sizes
    config = GatedDeltaConfig(key_heads, heads, key_dim, value_dim, width, key_heads == 1, 1e-6, (0,))
    made = config.channels + config.values
    mixer = GatedDelta(
        config=config,
        input=lambda x: x[:, :made],
        rates=lambda x: x[:, made:],
        conv_WC=randn(width, config.channels, dtype=dtype),
        a_H=-torch.rand(heads) - 0.1,
        bias_H=randn(heads),
        norm=Norm(randn(value_dim, dtype=torch.float32 if key_heads == 1 else dtype)),
    )
    return mixer, gated_delta_state(config, dtype), made + 2 * heads


def mixer_of(shape: str, dtype: torch.dtype) -> tuple[Mixer, tuple[StatePart, ...], int]:
    """A mixer whose input is what its first matrix would make, what it keeps, and the width of that input."""
    kind, _, which = shape.partition(" ")
    torch.manual_seed(sum(map(ord, shape)))
    if kind == "conv":
        return conv(dtype, int(which))
    if kind == "mamba1":
        return mamba1(dtype, *((48, 16) if not which else (80, 48)))
    if kind == "mamba2":
        return mamba2(dtype, {"": (4, 16, 2, 16, 2), "odd": (3, 48, 1, 112, 3), "wide": (2, 64, 1, 256, 4)}[which])
    return delta(dtype, {"": (2, 4, 16, 16, 4), "odd": (1, 3, 48, 80, 2), "wide": (1, 2, 128, 128, 4)}[which])


class Bench:
    """One layer over a pool of random bytes, and its states by kernels and by torch operations."""

    def __init__(self, kernels, shape: str, dtype: torch.dtype, head_dim: int = 16) -> None:
        self.mixer, self.parts, self.width = mixer_of(shape, dtype)
        layout = KvLayout("", "float32", 1, 4, 1, head_dim)
        self.k = -(-state_bytes(self.parts) // layout.page_bytes)
        self.layout = replace(layout, groups=(CacheGroup(STATE, self.k, (0,)),))
        self.pages = 2 * self.k * len(ROWS)
        # Pairs of bfloat16, which are sound float32, too.
        self.pool = randn(1, self.pages, 2, 4, 1, 2 * head_dim, dtype=torch.bfloat16).view(torch.float32)
        self.theirs, store = self.store(), self.store()
        self.ours = CpuStates(kernels, store, {0: self.mixer}, dtype)
        assert self.ours.covers

    def store(self) -> StateStore:
        return StateStore(self.layout, {0: self.parts})

    def batch(self, rows: Sequence[tuple[int, int]], seed: int, in_place: bool = True) -> StepBatch:
        """A step whose states are in shuffled pages."""
        ids = random.Random(seed).sample(range(self.pages), self.pages)
        table = torch.tensor(ids[: 2 * self.k * len(rows)]).view(2, len(rows), self.k)
        made = make_batch([([1] * new, before, [0] * 40) for new, before in rows], 4, True)
        view = replace(made, state_sources=table[0], state_targets=table[0 if in_place else 1])
        return replace(made, views=(view,))

    def run(self, states: States, pool: torch.Tensor, batch: StepBatch, x: torch.Tensor) -> list[torch.Tensor]:
        """What comes out, and the states after it."""
        states.bind_pool(pool)
        states.plan(batch)
        out = states.mixed(0, self.mixer, x)
        after, view = self.store(), batch.views[0]
        after.bind_pool(pool)
        later = replace(batch, seq_lens_host=[length + 1 for length in batch.seq_lens_host])
        after.plan(replace(later, views=(replace(view, state_sources=view.state_targets),)))
        return [out, *after.read(0)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_like_torch(kernels, shape: str, dtype: torch.dtype) -> None:
    """Single tokens and several, rows that begin, pages read and others written, or the same ones."""
    bench = Bench(kernels, shape, dtype, head_dim=16 if "wide" in shape else 12)  # pages that cut vectors in two
    x = randn(sum(new for new, _ in ROWS), bench.width + 3, dtype=dtype)[:, : bench.width]
    for in_place in (False, True):
        batch = bench.batch(ROWS, seed=in_place, in_place=in_place)
        expected = bench.run(bench.theirs, bench.pool.clone(), batch, x)
        before = bench.pool.clone()
        got = bench.run(bench.ours, before, batch, x)
        for ours, theirs in zip(got, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert (ours.float() - theirs.float()).norm() <= TOLERANCE[dtype] * theirs.float().norm()
        if not in_place:
            sources = batch.views[0].state_sources
            assert torch.equal(before[:, sources], bench.pool[:, sources])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["conv 3", "mamba1 odd", "mamba2 odd", "delta odd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_cuts_companions_and_threads_change_no_bit(kernels, shape: str, dtype: torch.dtype, threads: int) -> None:
    bench = Bench(kernels, shape, dtype, head_dim=12)
    x, other = randn(40, bench.width, dtype=dtype), randn(3, bench.width, dtype=dtype)
    whole = bench.run(bench.ours, bench.pool.clone(), bench.batch([(40, 0)], seed=1), x)
    torch.set_num_threads(threads)
    try:
        pool, parts = bench.pool.clone(), []
        for begin, end in ((0, 1), (1, 18), (18, 19), (19, 40)):
            batch = bench.batch([(end - begin, begin), (3, 5)], seed=1)
            out, *after = bench.run(bench.ours, pool, batch, torch.cat((x[begin:end], other)))
            parts.append(out[: end - begin])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.cat(parts), whole[0])
    assert all(torch.equal(ours[0], alone[0]) for ours, alone in zip(after, whole[1:], strict=True))


@pytest.mark.parametrize("shape", ["conv 4", "mamba1", "mamba2", "delta"])
def test_saved_states_come_back(kernels, shape: str) -> None:
    bench = Bench(kernels, shape, torch.float32)
    pool, batch = bench.pool.clone(), bench.batch([(1, 7), (1, 8)], seed=3)
    x = randn(2, bench.width)
    bench.ours.bind_pool(pool)
    bench.ours.plan(batch)
    restore = bench.ours.saved()
    first = bench.ours.mixed(0, bench.mixer, x)
    assert not torch.equal(pool, bench.pool)
    restore()
    assert torch.equal(pool, bench.pool)
    assert torch.equal(bench.ours.mixed(0, bench.mixer, x), first)


def test_other_sizes_are_left_to_torch(kernels) -> None:
    assert not knows(mixer_of("mamba2", torch.float32)[0], torch.float16)
    assert not knows(conv(torch.float32, 5)[0], torch.float32)
    assert not knows(mamba2(torch.float32, (4, 8, 1, 16, 4))[0], torch.float32)
    assert not knows(delta(torch.float32, (1, 2, 24, 16, 4))[0], torch.float32)
