"""Matrices of few bits: what they mean survives stacking and every kernel."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from baton.engine.cpu import quantized
from baton.engine.cpu.build import COMPILERS, runnable_variants
from baton.engine.cpu.library import open_kernels
from baton.engine.model.matrices import picked
from baton.engine.model.projection import Joined, side_by_side
from baton.engine.model.quantized.matrix import (
    FLOAT8,
    QuantizedMatrix,
    Stack,
    by_kinds,
    stacked,
    to_float8,
    to_int4,
    to_int8,
)
from baton.runtime import environ

torch.set_num_threads(1)
OUTS, DEPTH = 80, 768


@pytest.fixture(scope="module", params=runnable_variants())
def kernels(request):
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    return open_kernels(environ.cache_dir() / "kernels", request.param)


def matrix(kind: str, group: int, lowest: bool = False, zero: int = 0, outs: int = OUTS) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(group)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.01

    if kind == "float8":
        # Every bit pattern but the two that are no numbers.
        codes = torch.randint(0, 254, (outs, DEPTH), generator=generator)
        values = (codes + (codes > 126)).to(torch.uint8).view(FLOAT8)
    elif kind in ("int4", "table"):
        values = torch.randint(0, 16, (outs, DEPTH), generator=generator).to(torch.uint8)
    else:
        values = torch.randint(-128, 128, (outs, DEPTH), generator=generator).to(torch.int8)
    steps = numbers(outs, DEPTH // group)
    made = QuantizedMatrix(values, steps, numbers(*steps.shape) if lowest else None, zero)
    return replace(made, table=numbers(16).bfloat16().float()) if kind == "table" else made


def meant(weight: QuantizedMatrix) -> torch.Tensor:
    """Weight by weight, in float64."""
    numbers = weight.values if weight.table is None else weight.table[weight.values.int()]
    every = numbers.double() - weight.zero
    groups = torch.arange(weight.shape[1]) // weight.group
    spread = every * weight.steps.double()[:, groups]
    return spread if weight.lowest is None else spread + weight.lowest.double()[:, groups]


CASES = [
    ("int4", 16, False, 8), ("int4", 32, True, 0), ("int4", 48, True, 0), ("int4", 128, True, 8),
    ("int4", 256, False, 8), ("int4", 768, False, 8), ("int8", 16, True, 0), ("int8", 32, False, 0),
    ("int8", 768, False, 0), ("int8", 768, True, 0), ("int8", 384, False, 8), ("float8", 128, False, 0),
    ("float8", 768, False, 0), ("table", 64, True, 0), ("table", 768, False, 0),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "group", "lowest", "zero"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_kernel(kernels, kind: str, group: int, lowest: bool, zero: int, dtype: torch.dtype) -> None:
    """Few rows are multiplied by exactly what is meant, many by that in bfloat16 unless there is to be one way; a row
    is the same to the last bit whatever its companions, of which there are many or few."""
    weight = matrix(kind, group, lowest, zero)
    exact_weight = meant(weight)
    torch.testing.assert_close(weight.dense(torch.float32).double(), exact_weight, atol=1e-5, rtol=1e-5)
    x = torch.randn(80, DEPTH, generator=torch.Generator().manual_seed(0)).bfloat16().to(dtype)
    bias = torch.randn(OUTS, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert quantized.fits(weight, dtype)
    exact = F.linear(x.double(), exact_weight, bias.double())
    rounded = F.linear(x.double(), exact_weight.float().bfloat16().double(), bias.double())

    def error(made: torch.Tensor) -> torch.Tensor:
        return (made.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()

    one_way = quantized.QuantizedLinear(kernels, weight, dtype, bias, one_way=True)
    y = one_way(x)
    assert y.dtype == dtype
    assert error(y) < 1.01 * error(exact.to(dtype)) + 1e-6
    layer = quantized.QuantizedLinear(kernels, weight, dtype, bias)
    many = layer(x)
    assert error(many) < 1.2 * error(rounded.to(dtype)) + 1e-6
    for rows in (0, 1, 2, 7, 16):
        assert torch.equal(one_way(x[3 : 3 + rows]), y[3 : 3 + rows])
    for rows in (0, 1, 2):
        assert torch.equal(layer(x[3 : 3 + rows]), y[3 : 3 + rows])
    assert torch.equal(layer(x[3:73]), many[3:73])
    if group == DEPTH and not lowest:
        assert torch.equal(many, y)


@pytest.mark.parametrize(
    ("kind", "group", "bits"), [("int4", 256, 4.125), ("int4", 32, 5), ("int8", 768, 8), ("int8", 32, 9)]
)
def test_bytes(kernels, kind: str, group: int, bits: float) -> None:
    """A step has 4 bytes, or 2 where these hold all."""
    weight = matrix(kind, group, zero=8 if kind == "int4" else 0, outs=128)
    layer = quantized.QuantizedLinear(kernels, weight, torch.float32, None)
    assert layer.nbytes == pytest.approx(128 * DEPTH * bits / 8, rel=0.01)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = replace(weight, steps=weight.steps.to(dtype).float())
        narrow = quantized.QuantizedLinear(kernels, rounded, torch.float32, None)
        assert layer.nbytes - narrow.nbytes == (0 if group == DEPTH else 128 * DEPTH // group * 2)
        x = torch.eye(DEPTH)[:2]
        torch.testing.assert_close(narrow(x).double(), meant(rounded)[:, :2].T, atol=0, rtol=1e-6)


def test_what_the_kernel_does_not_know() -> None:
    narrow = to_int8(torch.randn(16, 48))
    for odd in (matrix("int4", 8), matrix("int8", 1), matrix("int8", 32, outs=24), narrow):
        assert not quantized.fits(odd, torch.float32)
    assert not quantized.fits(matrix("int8", 32), torch.float16)


@pytest.mark.parametrize(
    "parts",
    [
        [("int4", 32, False, 8), ("int4", 32, False, 8)],
        [("int4", 32, False, 8), ("int4", 32, True, 0)],
        [("int4", 256, True, 0), ("int4", 32, False, 8), ("int8", 16, False, 0)],
        [("int8", 768, False, 0), ("int8", 768, False, 0)],
        [("float8", 768, False, 0), ("float8", 128, False, 0)],
    ],
)
def test_stacking_changes_no_weight(parts: list[tuple[str, int, bool, int]]) -> None:
    matrices = [matrix(*part) for part in parts]
    whole = stacked(matrices)
    assert whole is not None
    torch.testing.assert_close(meant(whole), torch.cat([meant(part) for part in matrices]), atol=1e-6, rtol=1e-6)


def test_inputs_in_an_order_of_their_own() -> None:
    """Kept through stacking, and undone where all weights are spread out."""
    order = torch.randperm(DEPTH, generator=torch.Generator().manual_seed(3))
    parts = [replace(matrix(kind, 32, True), order=order) for kind in ("int4", "int8")]
    whole = stacked(parts)
    assert whole is not None and whole.order is not None
    expected = torch.cat([meant(part) for part in parts])
    torch.testing.assert_close(whole.dense(torch.float64)[:, order], expected, atol=1e-6, rtol=1e-6)


def test_values_that_are_places_in_a_table() -> None:
    """Spread out, and stacked with values of 8 bits where the table has whole numbers."""
    table = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12.0])
    plain = matrix("int4", 32, True)
    few, other = replace(plain, table=table), replace(plain, table=table / 3)
    groups = torch.arange(DEPTH) // 32
    expected = table[plain.values.int()] * plain.steps[:, groups] + plain.lowest[:, groups]
    torch.testing.assert_close(few.dense(torch.float32), expected)
    whole = stacked([few, plain, matrix("int8", 32)])
    assert whole is not None and whole.table is None and whole.bits == 8
    torch.testing.assert_close(whole.dense(torch.float32)[:OUTS], expected)
    both = stacked([other, other])
    assert both is not None and both.table is not None and both.bits == 4
    assert stacked([other, few]) is None and stacked([other, plain]) is None


def test_what_cannot_be_stacked() -> None:
    plain, mixed = matrix("int4", 32, True), replace(matrix("int4", 32, True), order=torch.arange(DEPTH).flip(0))
    assert stacked([plain, mixed]) is None
    assert stacked([mixed, replace(mixed, order=mixed.order.roll(1))]) is None
    assert stacked([matrix("int8", 128), matrix("float8", 128)]) is None
    assert stacked([matrix("int8", 48), matrix("int8", 32)]) is None


@pytest.mark.parametrize(
    ("kind", "group", "lowest", "zero", "bits"),
    [("int4", 32, True, 0, 4.625), ("int8", 32, True, 0, 8.625), ("int8", 16, False, 32, 8.5625)],
)
@torch.inference_mode()
def test_steps_that_are_counted(kernels, kind: str, group: int, lowest: bool, zero: int, bits: float) -> None:
    """Steps of a byte, whose units have two: every weight is what it is with steps of four bytes."""
    generator = torch.Generator().manual_seed(0)
    blocks = DEPTH // 256
    units = (torch.randn(2 * OUTS, blocks, 1 + lowest, generator=generator) * 1e-3).half().float()
    units[3, 1] = 0
    counts = [
        torch.randint(-128, 128, (2 * OUTS, blocks, 256 // group), generator=generator) for _ in range(1 + lowest)
    ]
    steps = [(some * units[:, :, i : i + 1]).flatten(1) for i, some in enumerate(counts)]
    plain = replace(matrix(kind, group, zero=zero, outs=2 * OUTS), steps=steps[0], lowest=steps[1] if lowest else None)
    weight = picked(replace(plain, units=units), torch.arange(2 * OUTS).flip(0))
    assert isinstance(weight, QuantizedMatrix)
    expected = meant(plain).flip(0)
    x = torch.randn(80, DEPTH, generator=generator).bfloat16().float()
    for one_way in (False, True):
        layer = quantized.QuantizedLinear(kernels, weight, torch.float32, None, one_way)
        other = quantized.QuantizedLinear(kernels, replace(weight, units=None), torch.float32, None, one_way)
        assert layer.nbytes < other.nbytes
        assert layer.nbytes * 8 == 192 * DEPTH * bits  # outputs are filled up to panels
        for rows in (1, 4, 80):
            exact = x[:rows].double() @ expected.T
            error = ((layer(x[:rows]) - exact).square().mean() / exact.square().mean()).sqrt()
            assert error < (1e-6 if rows < 80 or one_way else 3e-3)
            assert torch.equal(layer(x[:rows]), other(x[:rows]))
    halves = by_kinds([picked(weight, outs) for outs in torch.arange(2 * OUTS).split(OUTS)])
    assert isinstance(halves, QuantizedMatrix) and halves.units is not None and torch.equal(halves.units, weight.units)
    mixed = stacked([weight, replace(matrix("int8", 16), zero=1)])
    assert mixed is not None and mixed.units is None


@torch.inference_mode()
def test_kinds_stay_apart(kernels) -> None:
    """Neighbours of a kind are one matrix; a product of all is that of each, and outputs can be picked out of all."""
    parts = [matrix("int4", 32, True), matrix("int4", 32, True), matrix("int8", 16, zero=32), matrix("int4", 128)]
    whole = by_kinds(parts)
    assert isinstance(whole, Stack) and whole.outs == [2 * OUTS, OUTS, OUTS] and whole.shape == (4 * OUTS, DEPTH)
    assert isinstance(by_kinds(parts[:2]), QuantizedMatrix)
    products = [quantized.QuantizedLinear(kernels, part, torch.float32, None) for part in whole.parts]
    product = side_by_side(products)
    assert isinstance(product, Joined)
    for rows in (0, 1, 3, 80):
        x = torch.randn(rows, DEPTH, generator=torch.Generator().manual_seed(0)).bfloat16().float()
        assert torch.equal(product(x), torch.cat([each(x) for each in products], 1))
        assert torch.equal(
            side_by_side([products[0], lambda x, last=products[1]: last(x)])(x), product(x)[:, : 3 * OUTS]
        )
    every = whole.dense(torch.float64)
    torch.testing.assert_close(every, torch.cat([meant(part) for part in parts]), atol=1e-6, rtol=1e-6)
    outs = torch.randperm(4 * OUTS, generator=torch.Generator().manual_seed(0))
    for some in (outs, torch.arange(3 * OUTS), torch.arange(OUTS).flip(0)):
        found = picked(whole, some)
        assert isinstance(found, Stack if len(some) > OUTS else QuantizedMatrix)
        assert torch.equal(found.dense(torch.float64), every[some])


def test_float8_at_load_is_the_nearest() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 16)[:, None]
    weight[3] = 0
    made = to_float8(weight)
    every = torch.arange(256, dtype=torch.uint8).view(FLOAT8).float()
    every = every[every.isfinite()]
    for row, steps, values in zip(weight, made.steps, made.dense(torch.float32), strict=True):
        best = (row[:, None] - every * steps).abs().amin(1)
        torch.testing.assert_close((values - row).abs(), best, atol=1e-7, rtol=1e-5)
    assert made.steps[3].isfinite().all() and not made.dense(torch.float32)[3].any()


def test_steps_at_load_bound_the_error() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    for made in (to_int8(weight), to_int4(weight, 32)):
        steps = made.steps.float().repeat_interleave(made.group, 1)
        # bfloat16's rounding of steps and lowest values comes on top in 4 bits.
        assert ((made.dense(torch.float32) - weight).abs() <= 0.55 * steps + 0.01 * (made.bits == 4)).all()
