"""Matrix products as callables: how the forward pass sees weights, whatever order or precision they are kept in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from baton.engine.model.pointwise import Pointwise
from baton.engine.model.quantized.matrix import QuantizedMatrix

Projection = Callable[[torch.Tensor], torch.Tensor]  # x [T, in] -> a new [T, out]
MakeProjection = Callable[[torch.Tensor, torch.Tensor | None], Projection]  # of a weight [out, in] and a bias [out]
# The same of a matrix of few bits, which stays as it is; None where that cannot be. x has inputs in the order in which
# the matrix' values have them: `order` is the caller's matter.
KeepProjection = Callable[[QuantizedMatrix, torch.Tensor | None], Projection | None]
Quantize = Callable[[torch.Tensor], QuantizedMatrix]
# Of all experts: x [P, in], sorted by expert, and rows of each, int64 [N] -> a new [P, out].
GroupedProjection = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Of each expert's matrix of few bits, and biases [N, out]; None where that cannot be.
KeepGrouped = Callable[[Sequence[QuantizedMatrix], torch.Tensor | None], GroupedProjection | None]


@dataclass(frozen=True, slots=True)
class ExpertProducts:
    """What multiplies by experts' matrices of few bits: `at_once` makes one product of all experts', `one` of one
    expert's. `spread_out`: where there is none for all, they are rather spread out than multiplied by one by one."""

    at_once: KeepGrouped
    one: KeepProjection
    spread_out: bool


@dataclass(frozen=True, slots=True)
class Products:
    """What multiplies by a model's matrices.

    `whole` makes products of matrices that are whole, `keep` of those that a checkpoint stores in few bits, `experts`
    of those of experts, on devices that multiply by all of them at once; None: these are spread out, too. With
    `quantize` all matrices are made such of few bits first, however they are stored.
    """

    whole: MakeProjection
    keep: KeepProjection | None = None
    experts: ExpertProducts | None = None
    quantize: Quantize | None = None

    def make(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Projection:
        """A product of a matrix that is whole."""
        if self.quantize is not None and self.keep is not None:
            kept = self.keep(self.quantize(weight), bias)
            if kept is not None:
                return kept
        return self.whole(weight, bias)


@dataclass(frozen=True, slots=True)
class Linear:
    """`y = x W^T + b`: weight [out, in], bias [out]. x is [..., in], y a new tensor [..., out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


PLAIN = Products(Linear)


@dataclass(frozen=True, slots=True)
class Reordered:
    """`product` of inputs in another order: its kth is input order[k], int64 [in]."""

    product: Projection
    order: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x.index_select(-1, self.order))


@runtime_checkable
class Writer(Protocol):
    """A product that can write its results to memory that is there: y [T, outs], which may be a part of wider rows."""

    outs: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    def write(self, x: torch.Tensor, y: torch.Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class Joined:
    """Results of several `products` of the same rows, one after the other, which nobody has to copy."""

    products: tuple[Writer, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        outs = [product.outs for product in self.products]
        y = x.new_empty((len(x), sum(outs)))
        for product, part in zip(self.products, y.split(outs, 1), strict=True):
            product.write(x, part)
        return y


@dataclass(frozen=True, slots=True)
class Concatenated:
    """The same of any products."""

    products: tuple[Projection, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([product(x) for product in self.products], -1)


def side_by_side(products: Sequence[Projection]) -> Projection:
    """Results of all of the same rows, one after the other."""
    writers = [product for product in products if isinstance(product, Writer)]
    return Joined(tuple(writers)) if len(writers) == len(products) else Concatenated(tuple(products))


@dataclass(frozen=True, slots=True)
class Scaled:
    """`product` of what is multiplied by `before`; its outputs by `after`, a number or one for each, [out]."""

    product: Projection
    before: float = 1.0
    after: torch.Tensor | float = 1.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x * self.before) * self.after


@dataclass(frozen=True, slots=True)
class Summed:
    """The sum of the `products` of inputs that stand side by side, `widths` of them for each."""

    products: tuple[Projection, ...]
    widths: tuple[int, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = (
            product(part.contiguous())
            for product, part in zip(self.products, x.split(self.widths, dim=-1), strict=True)
        )
        return sum(others, start=first)


@dataclass(frozen=True, slots=True)
class Mlp:
    """The MLP of a layer, or one expert. E hidden, F intermediate; without gates `gate_up` is E -> F."""

    gate_up: Projection  # E -> 2 F: gate, up
    down: Projection  # F -> E

    def __call__(self, x_TE: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        return self.down(pointwise.gate(self.gate_up(x_TE)))
