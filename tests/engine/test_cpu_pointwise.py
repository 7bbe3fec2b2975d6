"""Norms, rotation and gating of the CPU kernels against the torch reference, which rounds at the same places."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from baton.engine.cpu.build import COMPILERS, runnable_variants
from baton.engine.cpu.library import open_kernels
from baton.engine.cpu.pointwise import CpuPointwise, supports
from baton.engine.model.pointwise import Norm, TorchPointwise
from baton.runtime import environ

torch.set_num_threads(1)
DTYPES = [torch.float32, torch.bfloat16]
# Sums are taken in another order: a result may fall to the neighbouring bfloat16.
TOLERANCE = {torch.float32: {"atol": 2e-6, "rtol": 2e-6}, torch.bfloat16: {"atol": 1e-6, "rtol": 2**-7}}


@pytest.fixture(scope="module", params=runnable_variants())
def kernels(request):
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    return open_kernels(environ.cache_dir() / "kernels", request.param)


def shape(head_dim: int = 64, activation: str = "silu") -> SimpleNamespace:
    return SimpleNamespace(
        hidden_size=96, mlp_sizes=(160,), head_dim=head_dim, heads=6, kv_heads=2, norm_eps=1e-5, qk_norm="head",
        activation=activation, gated=True, clamped_swiglu=None,
    )  # fmt: skip


def both(kernels, dtype, head_dim: int = 64, activation: str = "silu"):
    like = shape(head_dim, activation)
    return CpuPointwise(kernels, like, dtype), TorchPointwise(like)


def norm_of(size: int, dtype: torch.dtype, kind: str, seed: int) -> Norm:
    weight = randn(size, dtype=dtype, seed=seed)
    return Norm(weight.float(), centred=kind == "centred") if kind != "narrow" else Norm(weight)


def randn(*size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return (2 * torch.randn(size, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 40])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["narrow", "wide", "centred"])
def test_norms(kernels, dtype, tokens: int, threads: int, kind: str) -> None:
    ours, reference = both(kernels, dtype)
    x, added = (randn(tokens, 96, dtype=dtype, seed=seed) for seed in (1, 2))
    norm = norm_of(96, dtype, kind, seed=3)
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(ours.norm(x, norm), reference.norm(x, norm), **TOLERANCE[dtype])
        expected = reference.add_norm(x, added, norm)
        total, normed = ours.add_norm(x.clone(), added, norm)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(total, expected[0])
    torch.testing.assert_close(normed, expected[1], **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 48, 64, 80, 128])
@pytest.mark.parametrize("normed", [None, "narrow", "wide", "centred"])
def test_rotation(kernels, dtype, head_dim: int, normed: str | None) -> None:
    ours, reference = both(kernels, dtype, head_dim)
    qkv = randn(21, 10 * head_dim, dtype=dtype)
    angles = randn(21, 1, head_dim // 2, dtype=torch.float32, seed=1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    norms = (None, None) if normed is None else tuple(norm_of(head_dim, dtype, normed, seed) for seed in (2, 3))
    expected = reference.rotate(qkv.clone(), cos, sin, *norms)
    tolerance = {"atol": 0.04 if normed and dtype == torch.bfloat16 else 1e-5, "rtol": TOLERANCE[dtype]["rtol"]}
    for got, wanted in zip(ours.rotate(qkv.clone(), cos, sin, *norms), expected, strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
def test_gate(kernels, dtype, activation: str) -> None:
    ours, reference = both(kernels, dtype, activation=activation)
    x = randn(33, 320, dtype=dtype)
    x[0, :6] = torch.tensor([0.0, -0.0, 200.0, -200.0, 3e4, -3e4])
    torch.testing.assert_close(ours.gate(x), reference.gate(x), atol=1e-6, rtol=2**-7)
    x[1] = float("nan")
    assert ours.gate(x)[1].isnan().all() and ours.gate(x)[2:].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weigh(kernels, dtype) -> None:
    ours, reference = both(kernels, dtype)
    x, gate = randn(33, 96, dtype=dtype, seed=1), randn(33, 96, dtype=dtype, seed=2)
    gate[0, :3] = torch.tensor([0.0, 200.0, -200.0])
    torch.testing.assert_close(ours.weigh(x, gate), reference.weigh(x, gate), atol=1e-6, rtol=2**-7)


def test_sizes_that_the_kernels_do_not_know() -> None:
    assert supports(shape(), torch.float32)
    assert not supports(shape(24), torch.float32)
    assert not supports(shape(), torch.float16)
