"""Linear layers for CPUs: packed ones are exact, quantized ones are close, and a quantized model says much the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from paged_rows import PagedModel, Row

from baton.core.errors import ConfigError
from baton.engine.cpu import panels, quantized
from baton.engine.cpu.build import COMPILERS, processor_flags, runnable_variants
from baton.engine.cpu.library import open_kernels
from baton.engine.cpu.linear import PackedLinear, fp8, int4, int8, packed
from baton.engine.model.projection import Linear
from baton.engine.runner import TorchModelRunner
from baton.runtime import environ
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)
# Largest error of a product relative to the root mean square of the result, for weights of a normal distribution.
ERROR = {
    packed: {"float32": 1e-5, "bfloat16": 0.02}, int8: {"float32": 0.05, "bfloat16": 0.06}, int4: {"float32": 0.6},
    fp8: {"float32": 0.15},
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 5, 40, 100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("make", ERROR)
@torch.inference_mode()
def test_products(make, bias: bool, dtype: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(96, 128, generator=generator) * 128**-0.5).to(getattr(torch, dtype))
    x = torch.randn(rows, 128, generator=generator).to(weight.dtype)
    b = torch.randn(96, generator=generator).to(weight.dtype) if bias else None
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    y = make(weight.clone(), b)(x)
    assert y.dtype == weight.dtype and y.shape == (rows, 96)
    error = (y.double() - exact).abs().max() / exact.square().mean().sqrt()
    assert error < ERROR[make].get(dtype, ERROR[make]["float32"])


@pytest.fixture(scope="module", params=runnable_variants())
def kernels(request):
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    return open_kernels(environ.cache_dir() / "kernels", request.param)


@pytest.mark.parametrize(("name", "torch_made"), [("int8", int8), ("int4", int4), ("fp8", fp8)])
@pytest.mark.parametrize(("outs", "depth"), [(16, 32), (80, 288), (192, 768)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_own_kernel(kernels, name: str, torch_made, outs: int, depth: int, dtype: str) -> None:
    """As exact as torch's; a row's result is the same to the last bit whatever its companions and the threads, but for
    weights with steps: there it counts whether rows are few."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(outs, depth, generator=generator) * depth**-0.5).to(getattr(torch, dtype))
    x, bias = (torch.randn(*size, generator=generator).to(weight.dtype) for size in ((70, depth), (outs,)))
    exact = F.linear(x.double(), weight.double(), bias.double())
    layer = quantized.maker(kernels, name)(weight, bias)
    y = layer(x)
    assert isinstance(layer, quantized.QuantizedLinear)
    assert y.dtype == weight.dtype
    error, theirs = ((made - exact).square().mean().sqrt() for made in (y, torch_made(weight, bias)(x)))
    assert error < 1.1 * theirs
    torch.set_num_threads(2)
    try:
        assert torch.equal(layer(x), y)
    finally:
        torch.set_num_threads(1)
    for rows, of in ((0, 2), (1, 2), (66, 70), (69, 70)):
        assert torch.equal(layer(x[:rows]), layer(x[:of])[:rows])
    if name != "int4":
        assert torch.equal(layer(x[3:5]), y[3:5])


@pytest.mark.parametrize(("outs", "depth"), [(16, 2), (64, 256), (83, 290), (272, 1030)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_panels(kernels, outs: int, depth: int, bias: bool) -> None:
    """As exact as bfloat16 allows; a row is the same to the last bit whatever its companions and the threads."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(outs, depth, generator=generator) * depth**-0.5).bfloat16()
    x = torch.randn(600, depth, generator=generator).bfloat16()
    b = torch.randn(outs, generator=generator).bfloat16() if bias else None
    layer = panels.maker(kernels, packed)(weight, b)
    if not kernels.multiplies_pairs or "amx_bf16" in processor_flags():
        assert isinstance(layer, PackedLinear)
        return
    assert isinstance(layer, panels.PanelLinear)
    y = layer(x)
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    torch.set_num_threads(3)
    try:
        assert torch.equal(layer(x), y)
    finally:
        torch.set_num_threads(1)
    for rows in (0, 1, 2, 3, 6, 7, 8, 23, 513):
        assert torch.equal(layer(x[5 : 5 + rows]), y[5 : 5 + rows])


def test_panels_leave_to_others_what_they_do_not_know(kernels) -> None:
    make = panels.maker(kernels, Linear)
    for weight in (torch.randn(64, 64), torch.randn(64, 63).bfloat16()):
        assert isinstance(make(weight, None), Linear)


def test_own_kernel_leaves_odd_shapes_to_torch(kernels) -> None:
    assert quantized.maker(kernels, "int8")(torch.randn(20, 40), None)(torch.randn(2, 40)).shape == (2, 20)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_prompts_of_all_lengths_take_little_memory() -> None:
    """oneDNN keeps code for every number of rows: 200 MB more here, were all of them shown to it."""
    linear = PackedLinear(torch.randn(384, 128), None)
    linear(torch.randn(1500, 128))
    before = _own_mib()
    for rows in range(33, 1500, 3):
        linear(torch.randn(rows, 128))
    assert _own_mib() - before < 60


def _own_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))


def test_no_rows() -> None:
    weight = torch.randn(32, 64)
    for make in ERROR:
        assert make(weight)(torch.randn(0, 64)).shape == (0, 32)


def test_weights_of_one_value_stay_themselves() -> None:
    for make in (int8, int4, fp8):
        for value in (0.0, 0.25, -3.0):
            y = make(torch.full((16, 64), value))(torch.ones(1, 64))
            torch.testing.assert_close(y, torch.full((1, 16), 64 * value), rtol=0.01, atol=1e-5)


def test_shapes_that_int4_does_not_know() -> None:
    for shape in ((16, 40), (24, 64)):
        with pytest.raises(ConfigError, match="choose int8 or none"):
            int4(torch.zeros(shape))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("checkpoint"), "qwen3", layers=3, hidden=256, head_dim=32, heads=8, kv_heads=2,
        intermediate=512, vocab=1024, dtype="bfloat16",
    )  # fmt: skip


def logits(folder, tokens: list[int], **options) -> torch.Tensor:
    return PagedModel(TorchModelRunner.load(folder, **options)).step([(Row(tokens), len(tokens))], all_logits=True)


# Share of positions whose likeliest token is that of float32, and error relative to the logits' own spread. These
# weights are random and made to amplify differences; a trained model forgives far more. The bounds guard regressions.
@pytest.mark.parametrize(
    ("quantization", "dtype", "agreement", "error"),
    [("none", "bfloat16", 0.9, 0.06), ("int8", "bfloat16", 0.8, 0.11), ("int8", "float32", 0.8, 0.11),
     ("fp8", "bfloat16", 0.4, 0.35),
     ("int4", "bfloat16", 0.15, 0.75)],
)  # fmt: skip
def test_a_quantized_model_stays_close(folder, quantization: str, dtype: str, agreement: float, error: float) -> None:
    tokens = torch.randint(6, 1024, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    exact = logits(folder, tokens, dtype="float32", backend="torch")
    ours = logits(folder, tokens, dtype=dtype, quantization=quantization)
    same = (exact.argmax(-1) == ours.argmax(-1)).float().mean().item()
    off = ((ours - exact).square().mean().sqrt() / exact.std()).item()
    print(f"{quantization} {dtype}: same token {same:.3f}, error {off:.4f}")
    assert same >= agreement
    assert off <= error


def test_settings_that_do_not_exist(folder) -> None:
    with pytest.raises(ConfigError, match="quantization is 'int3'; it must be none, int8, int4"):
        TorchModelRunner.load(folder, quantization="int3")
    with pytest.raises(ConfigError, match="backend is 'gpu'; it must be auto or torch"):
        TorchModelRunner.load(folder, backend="gpu")
