"""Muon for the matrices inside the layers, AdamW for embeddings and norms.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") orthogonalises the momentum of
each matrix by a Newton-Schulz iteration; updates are scaled to the size of AdamW's as in Liu et al. 2025 ("Muon is
Scalable for LLM Training"), so that one learning rate serves both. Matrices of one shape are iterated together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of all parameters that have gradients; `closure` is not used."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalized(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"]).sub_(update.to(parameter.dtype), alpha=scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> torch.Tensor:
        """Nesterov momentum of the gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        average = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices [N, rows, columns] with their singular values moved to about one; computed in bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(model: nn.Module, lr: float, decay: float, embedding_lr: float) -> list[torch.optim.Optimizer]:
    """Optimizers that together cover all parameters of a model."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() == 2 and "embed" not in name
        (inner if matrix else outer).append(parameter)
    return [
        Muon(inner, lr, decay=decay),
        torch.optim.AdamW(outer, lr=embedding_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
