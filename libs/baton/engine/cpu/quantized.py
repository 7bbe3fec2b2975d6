"""Linear layers whose weights have 8 or 4 bits, by Baton's own kernel.

Decoding is bound by reading weights, and is faster the fewer bytes these are: the kernel widens them in registers, as
fast as memory gives them (benchmarks/engine/kernels.py). Weights alone are quantized: products are of bfloat16, sums in
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from baton.engine.cpu import linear
from baton.engine.cpu.library import ALIGNMENT, Kernels, QuantizedCall
from baton.engine.model.projection import KeepProjection, MakeProjection, Projection
from baton.engine.model.quantized.matrix import FLOAT8, QuantizedMatrix, to_float8, to_int4, to_int8

_PANEL_OUTS = 64  # outputs side by side, OUTS of source/quantized.h
_DEPTHS = 32  # the least group, of whole vectors of inputs, twice
_STEP_GROUPS = (256, 128, 64, 32, 16)  # inputs that may share a step: PANEL there is the most, a vector the least
_UNIT_INPUTS = 256  # that share the units of their steps, PANEL there
_INT4_GROUP = 32  # inputs that share a step where whole weights are quantized
_DTYPES = (torch.float32, torch.bfloat16)
_KINDS = {torch.uint8: 0, torch.int8: 1, FLOAT8: 2}  # Kind of source/codes.h
_STEPS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # Steps of source/quantized.h
_INT8_ZERO = 0.5  # what its codes for whole numbers stand for is larger by that

_QUANTIZE: dict[str, Callable[[torch.Tensor], QuantizedMatrix]] = {
    "int8": to_int8,
    "int4": lambda weight: to_int4(weight, _INT4_GROUP),
    "fp8": to_float8,
}


class QuantizedLinear:
    """`y = x W^T + b` for a W of few bits that `fits`.

    x is [T, in], y a new [T, out] of `dtype`, float32 or bfloat16. With `one_way`, or where each output has a single
    step, a row's result does not depend on its companions; elsewhere it depends on whether these are few or many, whose
    weights are rounded to bfloat16. Use from one thread at a time; spreads its work over `torch.get_num_threads()`
    threads.
    """

    def __init__(
        self,
        kernels: Kernels,
        weight: QuantizedMatrix,
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        one_way: bool = False,
    ) -> None:
        self._kernels = kernels
        self.outs, depth = weight.shape
        self._bias = None if bias is None else bias.float()
        self._table = weight.table.contiguous() if weight.table is not None else torch.arange(16.0)
        steps: list[torch.Tensor] = []
        units: list[torch.Tensor] = []
        self._scales, group = None, depth
        if _by_outputs(weight):
            self._scales = weight.steps.float().flatten()
        else:
            group = _step_group(weight.group)
            weight = weight.in_groups_of(group)
            steps, units = _counted(weight) if _counts(weight) else (_narrowest(_steps(weight)), [])
        self._records = _with_units(_records(_codes(weight.values), steps, depth // group), units)
        self._call = QuantizedCall(
            weights=self._records.data_ptr(), table=_address(self._table), scales=_address(self._scales),
            bias=_address(self._bias), zero=weight.zero + _INT8_ZERO * (weight.values.dtype == torch.int8),
            kind=_KINDS[weight.values.dtype], steps=_STEPS[(units or steps)[0].dtype] if steps else 0,
            counted=bool(units), has_lowest=weight.lowest is not None, group=group, one_way=one_way, depth=depth,
            outs=self.outs, bits=dtype.itemsize * 8,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Of all that it keeps of the weight."""
        return self._records.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = x.new_empty((len(x), self.outs))
        self.write(x, y)
        return y

    def write(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Writes its results to y [T, out], which may be a part of wider rows."""
        x, call = x.contiguous(), self._call
        call.x, call.out, call.rows, call.threads = x.data_ptr(), y.data_ptr(), len(x), torch.get_num_threads()
        call.stride = y.stride(0)
        self._kernels.multiply(call)


def fits(weight: QuantizedMatrix, dtype: torch.dtype) -> bool:
    """Whether the kernel knows weights of this shape, for rows of `dtype`."""
    outs, depth = weight.shape
    shaped = depth % _DEPTHS == 0 and outs % ALIGNMENT == 0
    return dtype in _DTYPES and shaped and (_by_outputs(weight) or _step_group(weight.group) > 0)


def maker(kernels: Kernels, quantization: str) -> MakeProjection:
    """Makes layers of int8, int4 or fp8: by the kernel, or by torch's operations for what the kernel does not know."""
    quantize = _QUANTIZE[quantization]

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Projection:
        outs, depth = weight.shape
        if weight.dtype in _DTYPES and depth % _DEPTHS == 0 and outs % ALIGNMENT == 0:
            return QuantizedLinear(kernels, quantize(weight), weight.dtype, bias)
        return linear.QUANTIZATIONS[quantization](weight, bias)

    return make


def keeper(kernels: Kernels, dtype: torch.dtype, one_way: bool) -> KeepProjection:
    """Makes layers of matrices of few bits as they are, for rows of `dtype`; None of those that the kernel lacks."""

    def keep(weight: QuantizedMatrix, bias: torch.Tensor | None) -> Projection | None:
        return QuantizedLinear(kernels, weight, dtype, bias, one_way) if fits(weight, dtype) else None

    return keep


def _by_outputs(weight: QuantizedMatrix) -> bool:
    """Whether whole sums can be multiplied by its steps."""
    return weight.steps.shape[1] == 1 and weight.lowest is None


def _step_group(group: int) -> int:
    """The largest group that the kernel knows and `group` is made of; 0: there is none."""
    if group < _STEP_GROUPS[0] and group % _STEP_GROUPS[-1] == 0:
        return group
    return next((size for size in _STEP_GROUPS if group % size == 0), 0)


def _counts(weight: QuantizedMatrix) -> bool:
    """Whether the kernel knows the units that its steps are multiples of."""
    units = weight.units
    return units is not None and weight.shape[1] == units.shape[1] * _UNIT_INPUTS and _UNIT_INPUTS % weight.group == 0


def _steps(weight: QuantizedMatrix) -> list[torch.Tensor]:
    return [weight.steps] if weight.lowest is None else [weight.steps, weight.lowest]


def _counted(weight: QuantizedMatrix) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Steps and lowest values as int8 [outs, groups]; and their units [outs, depth / _UNIT_INPUTS]."""
    assert weight.units is not None
    units = [each.contiguous() for each in weight.units.unbind(2)]
    by_units = [each.float().unflatten(1, (units[0].shape[1], -1)) for each in _steps(weight)]
    counts = [(each / unit[:, :, None]).nan_to_num(0).round() for each, unit in zip(by_units, units, strict=True)]
    return [each.to(torch.int8).flatten(1) for each in counts], _narrowest(units)


def _narrowest(steps: list[torch.Tensor]) -> list[torch.Tensor]:
    """All of them as the first of the types in which none changes."""
    wide = [each.float() for each in steps]
    for dtype in (torch.bfloat16, torch.float16):
        narrow = [each.to(dtype) for each in wide]
        if all(torch.equal(one.float(), each) for one, each in zip(narrow, wide, strict=True)):
            return narrow
    return wide


def _codes(values: torch.Tensor) -> torch.Tensor:
    """int32 [outs, words] of values [outs, depth]: codes as source/codes.h has them."""
    if values.dtype == torch.uint8:
        codes = values[:, 0::2] | values[:, 1::2] << 4
    elif values.dtype == torch.int8:
        codes = values ^ (values >> 7 & 127)  # as many below zero as there are at it and above
    else:
        codes = values
    return codes.contiguous().view(torch.int32)


def _records(words: torch.Tensor, steps: Iterable[torch.Tensor], groups: int) -> torch.Tensor:
    """int32 [panels, groups, numbers]: of each group its words, then each of `steps` [outs, groups], by outputs."""
    parts = [_by_panels(words).flatten(1).unflatten(1, (groups, -1))]
    parts += [_by_panels(each).view(torch.int32) for each in steps]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _with_units(records: torch.Tensor, units: Sequence[torch.Tensor]) -> torch.Tensor:
    """int32 [panels, numbers], of records of which those that share units stand after these."""
    if not units:
        return records
    parts = [_by_panels(each).view(torch.int32) for each in units]
    return torch.cat([*parts, records.unflatten(1, (units[0].shape[1], -1)).flatten(2)], 2)


def _by_panels(rows: torch.Tensor) -> torch.Tensor:
    """[outs, columns] as [panels, columns, PANEL_OUTS]; outputs that the last panel lacks are 0."""
    outs, columns = rows.shape
    panels = rows.new_empty((-(-outs // _PANEL_OUTS), columns, _PANEL_OUTS))
    if outs % _PANEL_OUTS:
        panels[-1].zero_()
    for panel, some in zip(panels, rows.split(_PANEL_OUTS), strict=True):
        panel[:, : len(some)].copy_(some.t())
    return panels


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
