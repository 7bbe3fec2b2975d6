"""Linear layers of a model of `transformers` as Baton's products: packed for a CPU, or of fewer bits.

Done once a model is known to run. Layers whose matrices its code looks at by itself, beside calling them, stay as they
are: which these are was watched while it was tried. What is packed is not kept a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from baton.engine.model.matrices import Matrix
from baton.engine.model.projection import Projection
from baton.engine.model.quantized.matrix import QuantizedMatrix

MakeProduct = Callable[[Matrix, torch.Tensor | None], Projection]  # of a matrix [out, in] and a bias [out]
Stored = Callable[[str, torch.Tensor], QuantizedMatrix | None]


class _WatchedLinear(nn.Linear):
    """A linear layer that notices when somebody else looks at its matrix."""

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            self.__dict__["is_looked_at"] = True
        return super().__getattr__(name)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        parameters: dict[str, Any] = self._parameters
        return F.linear(input, parameters["weight"], parameters["bias"])


class _Product(nn.Module):
    """x [..., in] -> [..., out]."""

    def __init__(self, product: Projection, fan_out: int) -> None:
        super().__init__()
        self._product = product
        self._fan_out = fan_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self._fan_out)


@contextmanager
def watched(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Fills the set with linear layers whose matrices nobody looked at meanwhile."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    for layer in layers:
        layer.__class__ = _WatchedLinear
    untouched: set[nn.Module] = set()
    try:
        yield untouched
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear
            if not layer.__dict__.pop("is_looked_at", False):
                untouched.add(layer)


@torch.inference_mode()
def replace_linears(
    model: nn.Module, untouched: set[nn.Module], make: MakeProduct, stored: Stored | None = None
) -> None:
    """Put what `make` makes of their matrices in the place of those layers, and of GPT-2's kind of them. `stored` may
    say of one, by the layer's name, how it is stored in few bits: then of that."""
    done: dict[nn.Module, _Product] = {}
    for path, parent in list(model.named_modules()):
        for name, layer in list(parent.named_children()):
            if layer in done:
                setattr(parent, name, done[layer])
                continue
            if type(layer) is Conv1D:
                weight, bias = layer.weight.detach().t().contiguous(), layer.bias.detach()
            elif layer in untouched and isinstance(layer, nn.Linear):
                weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
            else:
                continue
            matrix = stored(f"{path}.{name}" if path else name, weight) if stored is not None else None
            done[layer] = _Product(make(weight if matrix is None else matrix, bias), len(weight))
            setattr(parent, name, done[layer])
            del weight, bias, matrix
            layer._parameters.clear()  # so that there are never two of more than one layer
