"""Mixture of experts: which experts a token goes to, and what they make of it.

Stands in a layer where a dense model has its MLP. Tokens are sorted by expert; then each expert that is hit does two
matrix products for all of its tokens (`LoopedMlps`), or two grouped products do those of all experts (`GroupedMlps`).
Experts that are not hit cost nothing. A token's result does not depend on its companions, apart from how products of
other row counts round.

    T  tokens    E  hidden size    N  experts    A  experts per token    P  pairs of token and expert, T * A
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from baton.engine.model.moe_config import Routing
from baton.engine.model.pointwise import Pointwise
from baton.engine.model.projection import GroupedProjection, Linear, Mlp, Projection


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses experts: by the A best scores, of the best groups only where there are groups."""

    routing: Routing
    experts: Linear  # E -> N, in float32: which experts are chosen should not be a matter of rounding
    correction_N: torch.Tensor | None  # float32, added to scores for choosing only (DeepSeek-V3)

    def __call__(self, x_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of experts, int64 [T, A], and the weight of each, float32 [T, A]."""
        routing = self.routing
        logits_TN = self.experts(x_TE.float())
        scores_TN = logits_TN.sigmoid() if routing.sigmoid else logits_TN.softmax(-1)
        choice_TN = scores_TN if self.correction_N is None else scores_TN + self.correction_N
        if routing.groups > 1:
            choice_TN = self._of_best_groups(choice_TN)
        chosen_TA = choice_TN.topk(routing.active, dim=-1).indices
        weights_TA = scores_TN.gather(1, chosen_TA)
        if routing.normalized:
            weights_TA = weights_TA / (weights_TA.sum(-1, keepdim=True) + routing.least_sum)
        return chosen_TA, weights_TA * routing.scale

    def _of_best_groups(self, choice_TN: torch.Tensor) -> torch.Tensor:
        """Scores of experts outside the best groups as -inf; a group is as good as its best expert, or best two."""
        routing = self.routing
        grouped = choice_TN.unflatten(1, (routing.groups, -1))
        strength = grouped.topk(routing.group_judges, dim=-1).values.sum(-1)
        best = strength.topk(routing.active_groups, dim=-1).indices
        hidden = torch.ones_like(strength, dtype=torch.bool).scatter_(1, best, False)
        return grouped.masked_fill(hidden[:, :, None], float("-inf")).flatten(1)


class ExpertMlps(Protocol):
    """The MLPs of all experts."""

    def __call__(self, sorted_PE: torch.Tensor, counts_N: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        """What experts make of rows that are sorted by expert, int64 [N] rows for each; a new [P, E]."""


@dataclass(frozen=True, slots=True)
class LoopedMlps:
    """One after the other, with whatever kind of matrix product the device has. Waits for `counts_N`."""

    mlps: tuple[Mlp, ...]

    def __call__(self, sorted_PE: torch.Tensor, counts_N: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        parts = sorted_PE.split(counts_N.tolist())
        made = [mlp(part, pointwise) for mlp, part in zip(self.mlps, parts, strict=True) if len(part)]
        return torch.cat(made) if made else torch.empty_like(sorted_PE)


@dataclass(frozen=True, slots=True)
class GroupedLinear:
    """A matrix per expert: weight [N, out, in], bias [N, out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, counts_N: torch.Tensor) -> torch.Tensor:
        y = F.grouped_mm(x, self.weight.transpose(1, 2), offs=counts_N.cumsum(0).to(torch.int32))
        return y if self.bias is None else y + self.bias.repeat_interleave(counts_N, 0, output_size=len(x))


@dataclass(frozen=True, slots=True)
class GroupedMlps:
    """All at once, for GPUs: the host neither counts nor waits."""

    gate_up: GroupedProjection
    down: GroupedProjection

    def __call__(self, sorted_PE: torch.Tensor, counts_N: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        return self.down(pointwise.gate(self.gate_up(sorted_PE, counts_N)), counts_N)


@dataclass(frozen=True, slots=True)
class Experts:
    """An MLP made of many, of which a token goes through few, and through the `shared` one always."""

    router: Router
    mlps: ExpertMlps
    shared: Mlp | None = None
    shared_gate: Projection | None = None  # E -> 1: how much of the shared expert's result counts

    def __call__(self, x_TE: torch.Tensor, pointwise: Pointwise) -> torch.Tensor:
        chosen_TA, weights_TA = self.router(x_TE)
        mixed_TE = self._mix(x_TE, chosen_TA, weights_TA, pointwise)
        if self.shared is None:
            return mixed_TE
        shared_TE = self.shared(x_TE, pointwise)
        if self.shared_gate is not None:
            shared_TE = self.shared_gate(x_TE).sigmoid() * shared_TE
        return mixed_TE + shared_TE

    def _mix(
        self, x_TE: torch.Tensor, chosen_TA: torch.Tensor, weights_TA: torch.Tensor, pointwise: Pointwise
    ) -> torch.Tensor:
        active = chosen_TA.shape[1]
        order = chosen_TA.flatten().argsort(stable=True)  # of (token, expert) pairs, by expert
        tokens = torch.div(order, active, rounding_mode="floor")
        numbers = torch.arange(len(self.router.experts.weight), device=x_TE.device)
        counts_N = (chosen_TA.flatten()[:, None] == numbers).sum(0)
        sorted_PE = x_TE[tokens]
        if self.router.routing.weighs_input:
            sorted_PE = sorted_PE * weights_TA.flatten()[order, None].to(x_TE.dtype)
        made_PE = torch.empty_like(sorted_PE)
        made_PE[order] = self.mlps(sorted_PE, counts_N, pointwise)
        wide_TAE = made_PE.unflatten(0, (-1, active)).float()
        if not self.router.routing.weighs_input:
            wide_TAE = wide_TAE * weights_TA[:, :, None]
        return wide_TAE.sum(1).to(x_TE.dtype)
