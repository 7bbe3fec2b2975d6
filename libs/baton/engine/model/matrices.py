"""Matrices of a checkpoint, brought together and made into whatever multiplies by them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.projection import KeepProjection, Mlp, Products, Projection, Reordered, side_by_side
from baton.engine.model.quantized.matrix import QuantizedMatrix, Stack, by_kinds, stacked
from baton.engine.model.quantized.scheme import Scheme
from baton.engine.model.tensors import STORED_DTYPES, TensorReader

Matrix: TypeAlias = torch.Tensor | QuantizedMatrix


@dataclass(slots=True)
class Tally:
    """What became of matrices of few bits: how many are multiplied by as they are, and how many were spread out."""

    kept: int = 0
    spread_out: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # held by who counts


@dataclass(frozen=True, slots=True)
class Matrices:
    """Reads matrices by name, and makes `products` of them as soon as they are read. Any thread.

    `scheme` is how the checkpoint stores those that are not plain numbers. What it stores in few bits is multiplied by
    as it is where `products` can do so, and is spread out elsewhere.
    """

    reader: TensorReader
    products: Products
    scheme: Scheme | None = None
    tally: Tally = field(default_factory=Tally)

    def linear(self, names: Sequence[str], outs: Sequence[int], fan_in: int, bias: bool) -> Projection:
        return self.product(*self.kinds(names, outs, fan_in, bias))

    def product(self, weight: Matrix | Stack, bias: torch.Tensor | None) -> Projection:
        """What multiplies by a matrix, which it takes over."""
        if isinstance(weight, Stack):
            return self._side_by_side(weight, bias)
        few = self.in_few_bits(weight)
        kept = None if few is None else self.kept(few, bias, self.products.keep)
        if kept is None:
            return self.products.whole(self.dense(weight), bias)
        self.count_kept(1)
        return kept

    def in_few_bits(self, weight: Matrix) -> QuantizedMatrix | None:
        """What is to be multiplied by in few bits, if there is what can do so; None: the matrix as it is whole."""
        if self.products.quantize is not None:
            return self.products.quantize(self.dense(weight))
        return weight if isinstance(weight, QuantizedMatrix) else None

    def kept(
        self, weight: QuantizedMatrix, bias: torch.Tensor | None, keep: KeepProjection | None
    ) -> Projection | None:
        """What `keep` makes to multiply by a matrix as it is; None: nothing."""
        made = None if keep is None else keep(weight, bias)
        if made is None or weight.order is None:
            return made
        return Reordered(made, weight.order.to(self.reader.device))

    def count_kept(self, matrices: int) -> None:
        with self.tally.lock:
            self.tally.kept += matrices

    def dense(self, weight: Matrix | Stack) -> torch.Tensor:
        """The matrix spread out, if it is of few bits."""
        if isinstance(weight, torch.Tensor):
            return weight
        with self.tally.lock:
            self.tally.spread_out += 1
        return weight.to(self.reader.device).dense(self.reader.dtype)

    def one(self, name: str, shape: tuple[int, int]) -> Matrix:
        """The matrix `name` [outs, in]. Raises CheckpointError naming the tensor that is missing or is not as it should
        be."""
        if self.scheme is None or self._is_plain(name):
            return self.reader.one(f"{name}.weight", shape)
        return self.scheme.matrix(self.reader, name, shape)

    def parts(
        self, names: Sequence[str], outs: Sequence[int], fan_in: int, bias: bool
    ) -> tuple[Matrix, torch.Tensor | None]:
        """Weight and bias of the named matrices, one after the other; of one name, the checkpoint has them so."""
        weight, biases = self.kinds(names, outs, fan_in, bias)
        if not isinstance(weight, Stack):
            return weight, biases
        whole = stacked(weight.parts)
        return self.dense(weight) if whole is None else whole, biases

    def kinds(
        self, names: Sequence[str], outs: Sequence[int], fan_in: int, bias: bool
    ) -> tuple[Matrix | Stack, torch.Tensor | None]:
        """As `parts`, where those of different kinds stay apart."""
        if len(names) == 1:
            outs = [sum(outs)]
        weight = self._weight(names, [(out, fan_in) for out in outs])
        if not bias:
            return weight, None
        return weight, self.reader.stacked([f"{name}.bias" for name in names], [(out,) for out in outs])

    def dense_parts(
        self, names: Sequence[str], outs: Sequence[int], fan_in: int, bias: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `parts`, spread out."""
        weight, biases = self.kinds(names, outs, fan_in, bias)
        return self.dense(weight), biases

    def mlp(self, config: DecoderConfig, gate_up: Sequence[str], down: str, size: int, bias: bool) -> Mlp:
        outs, hidden = [size, size] if config.gated else [size], config.hidden_size
        return Mlp(
            gate_up=self.linear(gate_up, outs, hidden, bias),
            down=self.linear([down], [hidden], size, bias),
        )

    def _side_by_side(self, weight: Stack, bias: torch.Tensor | None) -> Projection:
        if self.products.quantize is not None or self.products.keep is None:
            return self.product(self.dense(weight), bias)
        biases: Sequence[torch.Tensor | None]
        biases = [None] * len(weight.parts) if bias is None else bias.split(weight.outs)
        return side_by_side([self.product(part, each) for part, each in zip(weight.parts, biases, strict=True)])

    def _weight(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Matrix | Stack:
        if self.scheme is None or all(map(self._is_plain, names)):
            return self.reader.stacked([f"{name}.weight" for name in names], shapes)
        parts = [self.one(name, shape) for name, shape in zip(names, shapes, strict=True)]
        quantized = [part for part in parts if isinstance(part, QuantizedMatrix)]
        if len(quantized) == len(parts):
            return by_kinds(quantized)
        return torch.cat([self.dense(part) for part in parts])

    def _is_plain(self, name: str) -> bool:
        """Whether the checkpoint has it as plain numbers, whatever its scheme: as modules that were not converted."""
        entry = self.reader.entries.get(f"{name}.weight")
        return entry is not None and entry.dtype in STORED_DTYPES


def picked(weight: Matrix | Stack, outs: torch.Tensor) -> Matrix | Stack:
    """The outputs `outs` of a matrix, in that order: in memory of its own."""
    if isinstance(weight, Stack):
        ends = torch.tensor(weight.outs).cumsum(0)
        numbers, counts = torch.bucketize(outs, ends, right=True).unique_consecutive(return_counts=True)
        runs = zip(numbers.tolist(), outs.split(counts.tolist()), strict=True)
        return by_kinds([_rows(weight.parts[n], run - ends[n] + weight.outs[n]) for n, run in runs])
    if isinstance(weight, QuantizedMatrix):
        return _rows(weight, outs)
    return weight[outs]


def by_outputs(weight: Matrix) -> tuple[torch.Tensor, ...]:
    """What a matrix is made of, all with outputs as their first dimension: to be put into another order in place."""
    return weight.by_outputs() if isinstance(weight, QuantizedMatrix) else (weight,)


def _rows(weight: QuantizedMatrix, outs: torch.Tensor) -> QuantizedMatrix:
    values = weight.values.view(torch.uint8)[outs].view(weight.values.dtype)
    lowest, units = (None if each is None else each[outs] for each in (weight.lowest, weight.units))
    return replace(weight, values=values, steps=weight.steps[outs], lowest=lowest, units=units)
