"""Products of few bits on GPUs: torch's own where a CPU has them, elsewhere stand-ins with the same contract."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from family_checkpoints import Checkpoint
from paged_rows import PagedModel, Row
from test_quantized_matrices import DEPTH, matrix, meant
from torch_gpu_double import gpu_products

from baton.core.errors import ConfigError
from baton.engine import products
from baton.engine.cuda import quantized
from baton.engine.cuda.support import Arithmetic
from baton.engine.model import expert_weights
from baton.engine.model.config import load_config
from baton.engine.model.expert_products import spread_out_bytes
from baton.engine.model.experts import GroupedMlps, LoopedMlps
from baton.engine.model.quantized.matrix import FLOAT8, QuantizedMatrix, to_float8
from baton.engine.model.through.runner import ThroughRunner
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint
from baton.testing.quantized_formats import FORMATS, requantize

torch.set_num_threads(1)
CPU = torch.device("cpu")
HOPPER = Arithmetic.of((9, 0), "13.0")


@pytest.fixture(autouse=True)
def _stand_ins():
    with gpu_products():
        yield


def weight_of(kind: str, group: int, lowest: bool, zero: int) -> QuantizedMatrix:
    if kind == "float8":
        steps = torch.rand(80, DEPTH // group, generator=torch.Generator().manual_seed(group)) + 0.5
        values = torch.randn(80, DEPTH, generator=torch.Generator().manual_seed(1)) * 40
        return QuantizedMatrix(values.to(FLOAT8), steps * 1e-4)
    return matrix(kind, group, lowest, zero)


def float8_rows(x: torch.Tensor, group: int) -> torch.Tensor:
    """The nearest that 8-bit floats hold with a step per group."""
    groups = x.double().unflatten(1, (-1, group))
    steps = groups.abs().amax(2, keepdim=True) / 448
    return ((groups / steps).to(FLOAT8).double() * steps).flatten(1)


CASES = [
    ("float8", 768, False, 0, "Float8Linear"), ("float8", 128, False, 0, "Float8GroupsLinear"),
    ("float8", 384, False, 0, "Float8GroupsLinear"), ("int4", 32, True, 0, "Int4Linear"),
    ("int4", 128, False, 8, "Int4Linear"), ("int4", 768, True, 3, "Int4Linear"), ("int8", 768, False, 0, "Int8Linear"),
    ("int8", 768, True, 5, "Int8Linear"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "group", "lowest", "zero", "made"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.inference_mode()
def test_products(kind: str, group: int, lowest: bool, zero: int, made: str, dtype: torch.dtype) -> None:
    """Of what is meant, by rows of as many bits as are said."""
    weight = weight_of(kind, group, lowest, zero)
    bias = torch.randn(80, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer = quantized.keeper(HOPPER, CPU)(weight, bias)
    assert type(layer).__name__ == made
    x = torch.randn(6, DEPTH, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 6)[:, None]
    x = x.bfloat16().to(dtype)
    rows = x.double()
    if kind == "float8":
        rows = float8_rows(x, DEPTH if made == "Float8Linear" else 128)
    exact = F.linear(rows, meant(weight))
    scale = exact.square().mean(1, keepdim=True).sqrt()
    for count in (1, 4, 6):
        y = layer(x[:count])
        assert y.dtype == dtype and y.shape == (count, 80)
        error = ((y.double() - bias.double() - exact[:count]) / scale[:count]).abs().max()
        assert error < (0.02 if kind != "int4" else 0.03) + bias.abs().max() / scale[:count].min() / 256


def test_what_is_kept_where() -> None:
    """By compute capability and version of CUDA; shapes and groups that no kernel takes are left to others."""
    rows, groups, four = weight_of("float8", 768, False, 0), weight_of("float8", 128, False, 0), matrix("int4", 64)
    for capability, cuda, kept in (
        ((9, 0), "13.0", (True, True, True)), ((9, 0), "12.8", (True, False, True)),
        ((8, 9), "13.0", (True, False, True)), ((8, 0), "13.0", (False, False, True)),
        ((7, 5), "13.0", (False, False, False)), ((10, 0), "13.0", (True, False, True)),
    ):  # fmt: skip
        keep = quantized.keeper(Arithmetic.of(capability, cuda), CPU)
        assert tuple(keep(weight, None) is not None for weight in (rows, groups, four)) == kept
    keep = quantized.keeper(HOPPER, CPU)
    for odd in (matrix("int4", 16), matrix("int4", 48, outs=84), matrix("int8", 32), weight_of("float8", 64, False, 0)):
        assert keep(odd, None) is None
    assert keep(to_float8(torch.randn(24, 64)), None) is None


@torch.inference_mode()
def test_experts_at_once() -> None:
    weights = [to_float8(torch.randn(48, 64, generator=torch.Generator().manual_seed(i))) for i in range(4)]
    bias = torch.randn(4, 48, generator=torch.Generator().manual_seed(9))
    every = quantized.experts_keeper(HOPPER, CPU)(weights, bias)
    assert every is not None
    x, counts = torch.randn(11, 64, generator=torch.Generator().manual_seed(5)), torch.tensor([4, 0, 6, 1])
    rows = float8_rows(x, 64)
    parts = [rows[:4], rows[4:4], rows[4:10], rows[10:]]
    exact = torch.cat([F.linear(part, meant(w), b.double()) for part, w, b in zip(parts, weights, bias, strict=True)])
    torch.testing.assert_close(every(x, counts).double(), exact, atol=0.05, rtol=0.01)
    older = Arithmetic.of((8, 9), "13.0")
    assert quantized.experts_keeper(older, CPU)(weights, bias) is None


TOKENS = torch.randint(6, 150, (40,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch):
    """Models of the torch backend multiply as on a GPU."""
    monkeypatch.setattr(products, "plain", lambda quantization: products.on_gpu(HOPPER, quantization, CPU, False))
    monkeypatch.setattr(expert_weights, "GROUPED_DEVICES", ("cpu",))
    said: list[dict[str, int]] = []
    monkeypatch.setattr("baton.engine.model.weights.log.info", lambda event, **fields: said.append(fields))
    return said


def logits(folder, **options) -> torch.Tensor:
    loaded = TorchModelRunner.load(folder, dtype="float32", backend="torch", **options)
    return PagedModel(loaded).step([(Row(TOKENS), len(TOKENS))], all_logits=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("plain"), hidden=128, heads=4, kv_heads=2, intermediate=256, tied=False
    )


# What rows of 8-bit floats, or products of bfloat16, cost.
@pytest.mark.parametrize(
    ("name", "error", "kept"),
    [
        ("fp8 per tensor", 0.2, True), ("fp8 blocks", 0.2, True), ("gptq 4 bit act-order", 0.03, True),
        ("awq", 0.03, True), ("marlin of gptq", 0.03, True), ("bitsandbytes int8", 0.03, True),
        ("compressed int8 asymmetric", 0.03, True), ("compressed nvfp4", 0.01, False),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_checkpoints(tmp_path, plain, on_hopper, monkeypatch, name: str, error: float, kept: bool) -> None:
    requantize(plain, tmp_path / "made", FORMATS[name])
    ours = logits(tmp_path / "made")
    assert (on_hopper[-1]["kept"] > 0, on_hopper[-1]["spread_out"] == 0) == (kept, kept)
    monkeypatch.undo()
    exact = logits(tmp_path / "made")
    assert 0 < (ours - exact).square().mean().sqrt() / exact.std() < error or not kept


@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.05), ("fp8", 0.3), ("int4", 0.8)])
@torch.inference_mode()
def test_at_load(plain, on_hopper, monkeypatch, quantization: str, error: float) -> None:
    ours = logits(plain, quantization=quantization)
    monkeypatch.undo()
    exact = logits(plain)
    assert 0 < (ours - exact).square().mean().sqrt() / exact.std() < error


@pytest.mark.parametrize(
    ("name", "options", "made"),
    [
        ("fp8 per tensor", {}, GroupedMlps), ("fp8 blocks", {}, LoopedMlps), ("gptq 4 bit", {}, LoopedMlps),
        ("compressed nvfp4", {}, LoopedMlps), (None, {"quantization": "fp8"}, GroupedMlps),
        (None, {"quantization": "int4"}, LoopedMlps),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_mixtures(tmp_path, on_hopper, monkeypatch, name: str | None, options, made: type) -> None:
    whole = Checkpoint(tmp_path / "plain", "mixtral", hidden_size=256, intermediate_size=256)
    folder = whole.folder
    if name is not None:
        folder = tmp_path / "made"
        requantize(whole.folder, folder, FORMATS[name])
    loaded = TorchModelRunner.load(folder, dtype="float32", backend="torch", **options)
    assert all(type(layer.mlp.mlps) is made for layer in loaded._decoder._weights.layers)
    ours = PagedModel(loaded).step([(Row(TOKENS), len(TOKENS))], all_logits=True)
    monkeypatch.undo()
    exact = logits(folder)
    assert (ours - exact).abs().median() < (0.5 if options.get("quantization") == "int4" else 0.2) * exact.std()


@torch.inference_mode()
def test_experts_that_fit_are_spread_out(tmp_path, on_hopper, monkeypatch) -> None:
    whole = Checkpoint(tmp_path / "plain", "mixtral", hidden_size=256, intermediate_size=256)
    meant = requantize(whole.folder, tmp_path / "made", FORMATS["compressed nvfp4"])
    config = load_config(tmp_path / "made")
    experts = [tensor for name, tensor in meant.items() if ".experts." in name]
    assert spread_out_bytes(config, torch.bfloat16) == sum(tensor.numel() for tensor in experts) * 2
    monkeypatch.setattr(products, "plain", lambda quantization: products.on_gpu(HOPPER, quantization, CPU))
    loaded = TorchModelRunner.load(tmp_path / "made", dtype="float32", backend="torch")
    assert all(type(layer.mlp.mlps) is GroupedMlps for layer in loaded._decoder._weights.layers)


@pytest.mark.parametrize("kind", ["table", "int4", "int8", "float8"])
@torch.inference_mode()
def test_experts_without_a_product_are_spread_out_when_they_are_hit(kind: str) -> None:
    """Exactly; meanwhile they take no more than they are stored in."""
    weight, bias = matrix(kind, 16, kind != "float8"), torch.randn(80, generator=torch.Generator().manual_seed(1))
    layer = quantized.expert_keeper(HOPPER, CPU)(weight, bias)
    assert isinstance(layer, quantized.SpreadLinear)
    x = torch.randn(5, DEPTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        layer(x).double(), F.linear(x.double(), meant(weight), bias.double()), atol=1e-3, rtol=1e-4
    )
    values = layer._weight.values if layer._pairs is None else layer._pairs
    assert layer._weight.values.untyped_storage().nbytes() in (0, values.nbytes)
    assert values.nbytes == 80 * DEPTH * weight.bits // 8


def test_a_quantization_that_the_gpu_lacks() -> None:
    with pytest.raises(ConfigError, match="fp8 needs a GPU of compute capability"):
        products.on_gpu(Arithmetic.of((8, 0), "13.0"), "fp8", CPU)
    with pytest.raises(ConfigError, match="int4 needs a GPU of compute capability"):
        products.on_gpu(Arithmetic.of((7, 5), None), "int4", CPU)


@torch.inference_mode()
def test_models_through_transformers(plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "on_cpu", lambda own, quantization, *_: products.on_gpu(HOPPER, quantization, CPU))
    runners = [ThroughRunner.load(plain, quantization=quantization) for quantization in ("none", "int8")]
    exact, ours = (PagedModel(each).step([(Row(list(TOKENS)), 40)], all_logits=True) for each in runners)
    assert 0 < (ours - exact).square().mean().sqrt() / exact.std() < 0.05


@torch.inference_mode()
def test_whole_matrices_at_load() -> None:
    """As encoders have them: in few bits where there is a product, else as they are."""
    by = products.on_gpu(HOPPER, "fp8", CPU)
    for outs, fits in ((32, True), (24, False)):
        weight = torch.randn(outs, 64, generator=torch.Generator().manual_seed(0))
        made, x = by.make(weight, None), torch.randn(3, 64)
        assert isinstance(made, quantized.Float8Linear) == fits
        torch.testing.assert_close(made(x), F.linear(x, weight), atol=2.0 if fits else 1e-5, rtol=0)
