"""Linear layers whose weights have 8 or 4 bits, by the kernels that torch brings for GPUs.

    8-bit floats   torch._scaled_mm, by step per output, or by step per 128 inputs (Hopper only); rows are made 8-bit
                   floats, too, each with a step of its own (or one per 128 inputs)
    4 bits         torch._weight_int4pack_mm, whose steps and lowest values are bfloat16; rows are bfloat16
    8 bits         torch._weight_int8pack_mm for few rows, which it is made for; for more the weight is spread out in
                   each product; rows are bfloat16

Layers are called as a CPU's (baton.engine.cpu.quantized) are; what no kernel takes is spread out when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType

from baton.engine.cuda.support import Arithmetic
from baton.engine.model.projection import GroupedProjection, KeepGrouped, KeepProjection, Projection
from baton.engine.model.quantized.matrix import (
    FLOAT8,
    FLOAT8_MOST,
    LEAST_STEP,
    QuantizedMatrix,
    to_float8,
    to_int4,
    to_int8,
)

_SIDES = 16  # both sides of a matrix of 8-bit floats are multiples of this number
_FLOAT8_GROUP = 128  # inputs that share a step, where not all do
_SCALES_ALIGNED = 4  # so many rows have steps side by side in whole 16 bytes
_INT4_GROUPS = (256, 128, 64, 32)  # inputs that share a step
_INT4_OUTS = 8
_INT4_TILES = (8, 4, 2)  # tiles of _INT4_TILE inputs that are packed together: more are faster
_INT4_TILE = 16
_INT4_MIDDLE = 8  # what the kernel subtracts from a value
_INT8_FEW_ROWS = 4

QUANTIZE: dict[str, Callable[[torch.Tensor], QuantizedMatrix]] = {
    "int8": to_int8,
    "int4": lambda weight: to_int4(weight, _INT4_GROUPS[-1]),
    "fp8": to_float8,
}


class Float8Linear:
    """W as 8-bit floats with a step per output. x is [T, in], y a new [T, out] of its dtype."""

    def __init__(self, weight: QuantizedMatrix, bias: torch.Tensor | None) -> None:
        self._weight = weight.values.t()  # [in, out], inputs side by side
        self._steps = weight.steps.float().reshape(1, -1)
        self._bias = bias

    @staticmethod
    def fits(weight: QuantizedMatrix, can: Arithmetic) -> bool:
        return can.float8 and _is_float8(weight) and weight.steps.shape[1] == 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        values, steps = _float8_rows(x)
        y = torch._scaled_mm(values, self._weight, scale_a=steps, scale_b=self._steps, out_dtype=torch.bfloat16)
        return _finished(y, x, self._bias)


class Float8GroupsLinear:
    """W as 8-bit floats with a step per 128 inputs of an output; DeepSeek-V3's square blocks are a case of that. x is
    [T, in], y a new [T, out] of its dtype."""

    def __init__(self, weight: QuantizedMatrix, bias: torch.Tensor | None) -> None:
        self._weight = weight.values.t()
        self._steps = _by_columns(weight.in_groups_of(_FLOAT8_GROUP).steps.float())
        self._bias = bias

    @staticmethod
    def fits(weight: QuantizedMatrix, can: Arithmetic) -> bool:
        return can.float8_groups and _is_float8(weight) and weight.group % _FLOAT8_GROUP == 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = F.pad(x, (0, 0, 0, -len(x) % _SCALES_ALIGNED))
        values, steps = _float8_rows(rows.unflatten(1, (-1, _FLOAT8_GROUP)))
        kind = ScalingType.BlockWise1x128
        y = F.scaled_mm(
            values.flatten(1), self._weight, _by_columns(steps[..., 0]), kind, self._steps, kind,
            output_dtype=torch.bfloat16,
        )  # fmt: skip
        return _finished(y[: len(x)], x, self._bias)


class Int4Linear:
    """W as whole numbers of 4 bits. x is [T, in], y a new [T, out] of its dtype."""

    def __init__(self, weight: QuantizedMatrix, bias: torch.Tensor | None) -> None:
        self._group = _int4_group(weight)
        weight = weight.in_groups_of(self._group)
        tiles = next(tiles for tiles in _INT4_TILES if weight.shape[1] % (tiles * _INT4_TILE) == 0)
        pairs = weight.values[:, ::2] << 4 | weight.values[:, 1::2]
        self._packed = torch._convert_weight_to_int4pack(pairs, tiles)
        steps = weight.steps.float()
        middle = (_INT4_MIDDLE - weight.zero) * steps
        if weight.lowest is not None:
            middle += weight.lowest.float()
        self._steps_middle = torch.stack((steps, middle), 2).transpose(0, 1).bfloat16().contiguous()
        self._bias = bias

    @staticmethod
    def fits(weight: QuantizedMatrix, can: Arithmetic) -> bool:
        shaped = weight.shape[0] % _INT4_OUTS == 0 and _int4_group(weight) > 0
        return can.int4 and weight.bits == 4 and weight.table is None and shaped

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.to(torch.bfloat16, memory_format=torch.contiguous_format)
        y = torch._weight_int4pack_mm(rows, self._packed, self._group, self._steps_middle)
        return _finished(y, x, self._bias)


class Int8Linear:
    """W as whole numbers of 8 bits with a step, and perhaps a lowest value, per output. x is [T, in], y a new [T, out]
    of its dtype."""

    def __init__(self, weight: QuantizedMatrix, bias: torch.Tensor | None) -> None:
        self._values = weight.values
        self._steps = weight.steps.float()[:, 0]
        self._ones = torch.ones_like(self._steps, dtype=torch.bfloat16)
        self._lowest = None
        if weight.lowest is not None or weight.zero:
            lowest = 0.0 if weight.lowest is None else weight.lowest.float()[:, 0]
            self._lowest = lowest - weight.zero * self._steps
        self._bias = bias

    @staticmethod
    def fits(weight: QuantizedMatrix, can: Arithmetic) -> bool:
        return weight.values.dtype == torch.int8 and weight.steps.shape[1] == 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.to(torch.bfloat16, memory_format=torch.contiguous_format)
        if len(x) <= _INT8_FEW_ROWS:
            y = torch._weight_int8pack_mm(rows, self._values, self._ones)
        else:
            y = F.linear(rows, self._values.bfloat16())  # whole numbers of 8 bits are exact in bfloat16
        y = y.float() * self._steps
        if self._lowest is not None:
            y += rows.float().sum(1, keepdim=True) * self._lowest
        return _finished(y, x, self._bias)


class Float8Experts:
    """`Float8Linear` of all experts at once: see GroupedLinear of baton.engine.model.experts."""

    def __init__(self, weights: Sequence[QuantizedMatrix], bias: torch.Tensor | None) -> None:
        codes = torch.stack([weight.values.view(torch.uint8) for weight in weights])
        self._weight = codes.view(FLOAT8).transpose(1, 2)  # [N, in, out], inputs side by side
        self._steps = torch.stack([weight.steps.float()[:, 0] for weight in weights])
        self._bias = bias

    @staticmethod
    def fits(weight: QuantizedMatrix, can: Arithmetic) -> bool:
        return can.float8_experts and Float8Linear.fits(weight, can)

    def __call__(self, x: torch.Tensor, counts_N: torch.Tensor) -> torch.Tensor:
        values, steps = _float8_rows(x)
        ends = counts_N.cumsum(0).to(torch.int32)
        y = torch._scaled_grouped_mm(
            values, self._weight, steps.flatten(), self._steps, offs=ends, out_dtype=torch.bfloat16
        )
        bias = None if self._bias is None else self._bias.repeat_interleave(counts_N, 0, output_size=len(x))
        return _finished(y, x, bias)


class SpreadLinear:
    """Any W of few bits, which each product spreads out: for experts, of which few are hit, where memory is short.

    x is [T, in], y a new [T, out] of its dtype.
    """

    def __init__(self, weight: QuantizedMatrix, bias: torch.Tensor | None) -> None:
        self._pairs = weight.values[:, ::2] << 4 | weight.values[:, 1::2] if weight.bits == 4 else None
        if self._pairs is not None:
            weight = replace(weight, values=weight.values.new_empty((len(weight.values), 0)))
        halves = weight.steps.bfloat16()  # of powers of two, as MXFP4's are, nothing is lost
        steps = halves if torch.equal(halves.float(), weight.steps.float()) else weight.steps
        self._weight = replace(weight, steps=steps, order=None)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._weight
        if self._pairs is not None:
            weight = replace(weight, values=torch.stack((self._pairs >> 4, self._pairs & 15), 2).flatten(1))
        return F.linear(x, weight.dense(x.dtype), self._bias)


_KINDS = (Float8Linear, Float8GroupsLinear, Int4Linear, Int8Linear)


def keeper(can: Arithmetic, device: torch.device) -> KeepProjection:
    """Makes layers of matrices of few bits on `device`; None of those that no kernel takes."""

    def keep(weight: QuantizedMatrix, bias: torch.Tensor | None) -> Projection | None:
        kind = next((kind for kind in _KINDS if kind.fits(weight, can)), None)
        return None if kind is None else kind(weight.to(device), bias)

    return keep


def expert_keeper(can: Arithmetic, device: torch.device) -> KeepProjection:
    """The same of one expert's: where no kernel takes them, they are spread out when the expert is hit."""
    keep = keeper(can, device)

    def keep_any(weight: QuantizedMatrix, bias: torch.Tensor | None) -> Projection:
        return keep(weight, bias) or SpreadLinear(weight.to(device), bias)

    return keep_any


def experts_keeper(can: Arithmetic, device: torch.device) -> KeepGrouped:
    """Makes one product of all experts' matrices; None of those that no kernel takes."""

    def keep(weights: Sequence[QuantizedMatrix], bias: torch.Tensor | None) -> GroupedProjection | None:
        fitting = all(weight.order is None and Float8Experts.fits(weight, can) for weight in weights)
        return Float8Experts([weight.to(device) for weight in weights], bias) if fitting else None

    return keep


def _is_float8(weight: QuantizedMatrix) -> bool:
    shaped = weight.shape[0] % _SIDES == 0 and weight.shape[1] % _SIDES == 0
    return weight.values.dtype == FLOAT8 and weight.lowest is None and shaped


def _int4_group(weight: QuantizedMatrix) -> int:
    """The largest group that the kernel knows and the weight's are made of; 0: there is none."""
    return next((size for size in _INT4_GROUPS if weight.group % size == 0), 0)


def _float8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit floats of x, and the step of each row, float32 [..., 1]: the largest of its numbers becomes 448."""
    wide = x.float()
    steps = wide.abs().amax(-1, keepdim=True).clamp_min(LEAST_STEP) / FLOAT8_MOST
    return (wide / steps).clamp(-FLOAT8_MOST, FLOAT8_MOST).to(FLOAT8), steps


def _by_columns(steps: torch.Tensor) -> torch.Tensor:
    """The same [n, groups] with the n of a group side by side in memory."""
    return steps.t().contiguous().t()


def _finished(y: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = y.to(x.dtype)
    return y if bias is None else y + bias
