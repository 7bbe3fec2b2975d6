"""A matrix of few bits: what all formats whose weights lie on evenly spaced steps, or are 8-bit floats, come down to.

Made while a checkpoint is read, or from whole weights; a CPU's kernels multiply by it as it is
(baton.engine.cpu.quantized), a GPU's by what they can (baton.engine.cuda.quantized); else it is spread out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MOST = 448.0
LEAST_STEP = 1e-12


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """W[o, order[i]] = steps[o, g] * (values[o, i] - zero) + lowest[o, g], where g = i // (inputs / groups).

    `values` are [outs, inputs]: uint8 up to 15, which count as 4 bits, int8, or float8_e4m3fn. `steps` and `lowest`
    are [outs, groups], float32 or bfloat16; no `lowest` is 0. `zero` is 0 but for whole numbers. `order` is int64
    [inputs], each of them once, where groups are made of inputs that do not stand side by side; None: they do. With
    `table`, float32 [16], values of 4 bits are places in it. With `units`, float32 [outs, blocks, 1 or 2], steps are
    whole multiples, of 8 bits with a sign, of the first unit of their block of inputs, and lowest values of the second:
    which whoever multiplies may make use of. The tensors are this object's own and share no memory.
    """

    values: torch.Tensor
    steps: torch.Tensor
    lowest: torch.Tensor | None = None
    zero: int = 0
    order: torch.Tensor | None = None
    table: torch.Tensor | None = None
    units: torch.Tensor | None = None

    @property
    def bits(self) -> int:
        return 4 if self.values.dtype == torch.uint8 else 8

    @property
    def group(self) -> int:
        """Inputs that share a step."""
        return self.values.shape[1] // self.steps.shape[1]

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def kind(self) -> tuple[object, ...]:
        """What matrices have in common that take no more when they are stacked."""
        return (
            self.values.dtype,
            self.steps.shape[1],
            self.lowest is None,
            self.zero,
            self.table is None,
            self.units is None,
        )

    def by_outputs(self) -> tuple[torch.Tensor, ...]:
        """The tensors that it is made of, as bytes or numbers that can be reordered: the first dimension is outputs."""
        values = self.values.view(torch.uint8) if self.values.dtype == FLOAT8 else self.values
        return values, *(each for each in (self.steps, self.lowest, self.units) if each is not None)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """All weights, computed in float32: a new [outs, inputs]."""
        numbers = self.values.float() if self.table is None else self.table[self.values.int()]
        groups = numbers.unflatten(1, (self.steps.shape[1], -1))
        spread = (groups - self.zero) * self.steps.float()[:, :, None]
        if self.lowest is not None:
            spread += self.lowest.float()[:, :, None]
        made = spread.flatten(1).to(dtype)
        return made if self.order is None else made[:, self.order.argsort()]

    def in_groups_of(self, group: int) -> QuantizedMatrix:
        """The same with smaller groups, of a size that `self.group` is a multiple of."""
        times = self.group // group
        steps, lowest = (
            None if each is None else each.repeat_interleave(times, 1) for each in (self.steps, self.lowest)
        )
        assert steps is not None
        return replace(self, steps=steps, lowest=lowest)

    def to(self, device: torch.device) -> QuantizedMatrix:
        """The same on another device."""
        lowest, order, table, units = (
            None if each is None else each.to(device) for each in (self.lowest, self.order, self.table, self.units)
        )
        return QuantizedMatrix(self.values.to(device), self.steps.to(device), lowest, self.zero, order, table, units)

    def in_8_bits(self) -> QuantizedMatrix | None:
        """The same with values of 8 bits; None where those of 4 bits stand for what is no whole number."""
        if self.bits == 8:
            return self
        if self.table is None:
            return replace(self, values=self.values.to(torch.int8))
        whole = self.table.to(torch.int8)
        return replace(self, values=whole[self.values.int()], table=None) if (whole == self.table).all() else None


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of several kinds, one after the other, as one [outs, inputs]: brought together they would take more."""

    parts: tuple[QuantizedMatrix, ...]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((sum(self.outs), self.parts[0].shape[1]))

    @property
    def outs(self) -> list[int]:
        return [part.shape[0] for part in self.parts]

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.cat([part.dense(dtype) for part in self.parts])

    def to(self, device: torch.device) -> Stack:
        return Stack(tuple(part.to(device) for part in self.parts))


def by_kinds(parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix | Stack:
    """Their rows, one after the other, where neighbours of a kind are one matrix."""
    made: list[QuantizedMatrix] = []
    for _, run in itertools.groupby(parts, lambda part: part.kind):
        alike = list(run)
        whole = stacked(alike)
        made += alike if whole is None else [whole]
    return made[0] if len(made) == 1 else Stack(tuple(made))


def stacked(parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix | None:
    """Their rows, one after the other: no weight changes. None where whole numbers would meet floats or what other
    tables hold, or inputs in one order those in another."""
    if len(parts) == 1:
        return parts[0]
    if len({part.values.dtype == FLOAT8 for part in parts}) > 1 or not _have_one([part.order for part in parts]):
        return None
    if len({part.bits for part in parts}) > 1 or not _have_one([part.table for part in parts]):
        widened = [part.in_8_bits() for part in parts]
        parts = [part for part in widened if part is not None]
        if len(parts) < len(widened):
            return None
    group = min(part.group for part in parts)
    if any(part.group % group for part in parts):
        return None
    parts = [part.in_groups_of(group) for part in parts]
    lowest = None
    if len({part.zero for part in parts}) > 1 or any(part.lowest is not None for part in parts):
        lowest = torch.cat([_lowest(part) for part in parts])
    return QuantizedMatrix(
        values=torch.cat([part.values.view(torch.uint8) for part in parts]).view(parts[0].values.dtype),
        steps=torch.cat([part.steps for part in parts]),
        lowest=lowest,
        zero=parts[0].zero if lowest is None else 0,
        order=parts[0].order,
        table=parts[0].table,
        units=_units(parts),
    )


def to_int8(weight: torch.Tensor) -> QuantizedMatrix:
    """The nearest with a step per output, of 255 values."""
    steps = weight.float().abs().amax(1, keepdim=True).clamp_min(LEAST_STEP) / 127.0
    return QuantizedMatrix((weight.float() / steps).round_().to(torch.int8), steps)


def to_int4(weight: torch.Tensor, group: int) -> QuantizedMatrix:
    """The nearest with a step and a lowest value, bfloat16, per `group` inputs, of 16 values."""
    groups = weight.float().unflatten(1, (-1, group))
    # Rounded to what is kept before quantizing, so that the nearest step is found for that.
    lowest = groups.amin(2).bfloat16()
    steps = ((groups.amax(2) - lowest.float()) / 15.0).clamp_min(1e-8).bfloat16()
    values = ((groups - lowest.float()[:, :, None]) / steps.float()[:, :, None]).round_().clamp_(0, 15)
    return QuantizedMatrix(values.flatten(1).to(torch.uint8), steps, lowest)


def to_float8(weight: torch.Tensor) -> QuantizedMatrix:
    """The nearest float8_e4m3fn with a factor per output."""
    steps = weight.float().abs().amax(1, keepdim=True).clamp_min(LEAST_STEP) / FLOAT8_MOST
    return QuantizedMatrix((weight.float() / steps).clamp_(-FLOAT8_MOST, FLOAT8_MOST).to(FLOAT8), steps)


def _have_one(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether all are the same, or none is there."""
    there = [tensor for tensor in tensors if tensor is not None]
    return not there or (len(there) == len(tensors) and all(torch.equal(tensor, there[0]) for tensor in there))


def _units(parts: Sequence[QuantizedMatrix]) -> torch.Tensor | None:
    """Those of all, where they are of the same things."""
    units = [part.units for part in parts if part.units is not None]
    alike = len(units) == len(parts) and len({(part.zero, part.lowest is None) for part in parts}) == 1
    return torch.cat(units) if alike else None


def _lowest(part: QuantizedMatrix) -> torch.Tensor:
    """What is added where nothing is subtracted from values."""
    lowest = -part.zero * part.steps
    return lowest if part.lowest is None else lowest + part.lowest
