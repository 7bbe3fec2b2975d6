"""How a model of `transformers` runs on pages, found by trying one way after the other.

Used while a model is loaded. No list says what runs, but for what no short trial can show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import structlog
import torch
from transformers import PreTrainedModel

from baton.core.errors import CheckpointError, InternalError
from baton.core.layout import KvLayout
from baton.engine.batch import StepBatch
from baton.engine.grouping import in_groups
from baton.engine.model.through.attention import Shape
from baton.engine.model.through.body import Body
from baton.engine.model.through.flat import FlatPlan
from baton.engine.model.through.interface import MODEL_ERRORS
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.recomputed import recomputed
from baton.engine.model.through.rows import RowsPlan
from baton.engine.model.through.selfcheck import Expected, check_self, pages_needed
from baton.engine.pool import KvPool
from baton.engine.state_store import state_bytes

_WAYS = (
    FlatPlan.of,
    RowsPlan.of,
    partial(RowsPlan.of, with_positions=False),
    partial(RowsPlan.of, in_chunks=False),
    partial(RowsPlan.of, with_positions=False, in_chunks=False),
)
log = structlog.get_logger(__name__)


class Steps(Protocol):
    """A model that runs steps on pages."""

    def bind_pool(self, pool: torch.Tensor) -> None:
        """Use `pool`; it stays the caller's."""

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None, /) -> torch.Tensor:
        """As `ThroughRunner.forward`, with logits of any dtype."""


class Plan(Protocol):
    """A way for a model to run steps on pages."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def passes(self) -> Passes: ...

    def steps(self, layout: KvLayout, own_kernels: bool) -> Steps: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """What plans are tried on: pools like `layout`, for a model whose texts may have up to `context_tokens`."""

    layout: KvLayout
    context_tokens: int
    own_kernels: bool

    @torch.inference_mode()
    def expected(self, model: PreTrainedModel) -> Expected:
        """The model's own logits of made-up texts. Raises CheckpointError if it does not take text alone."""
        device = next(model.parameters()).device

        def own(token_ids: list[int]) -> torch.Tensor:
            logits: torch.Tensor = model(input_ids=torch.tensor([token_ids], device=device), use_cache=False).logits[0]
            return logits.float()

        try:
            return Expected.of(own, model.get_input_embeddings().num_embeddings, self.context_tokens)
        except MODEL_ERRORS as error:
            raise CheckpointError(f"{_refused(model)}: it does not take text alone ({error})") from error

    @torch.inference_mode()
    def check(self, plan: Plan, expected: Expected) -> None:
        """Raises CheckpointError, InternalError, or what the model raises, unless the plan gives what is expected."""
        weight = next(plan.model.parameters())
        fitting = fitting_layout(self.layout, plan.shape, self.context_tokens)
        steps = plan.steps(fitting, self.own_kernels)
        steps.bind_pool(KvPool(fitting, pages_needed(fitting), device=weight.device).tensor)
        check_self(steps.forward, expected, fitting, weight.device, exact=weight.dtype == torch.float32)


@torch.inference_mode()
def find_plan(model: PreTrainedModel, trial: Trial, expected: Expected) -> Plan:
    """The first way that passes the self-check. Raises CheckpointError, with what was wrong with each, when there is
    none."""
    reasons: dict[str, None] = {}
    for attempt in _WAYS:
        try:
            plan = attempt(model, context_tokens=trial.context_tokens)
            trial.check(plan, expected)
            return plan
        except (CheckpointError, InternalError, *MODEL_ERRORS) as error:
            reasons[_told(error)] = None
    try:
        last_plan = recomputed(model, expected, trial.check)
    except (CheckpointError, InternalError, *MODEL_ERRORS) as error:
        reasons[_told(error)] = None
        raise CheckpointError(f"{_refused(model)}: {'; '.join(reasons)}") from error
    log.warning("slow: each token costs a pass over the whole text, for no cache can be kept", why="; ".join(reasons))
    return last_plan


def _refused(model: PreTrainedModel) -> str:
    name = type(model.body if isinstance(model, Body) else model).__name__
    return f"{name} cannot run through transformers"


def _told(error: Exception) -> str:
    """What was wrong, in words."""
    if isinstance(error, (CheckpointError, InternalError)):
        return error.message
    return f"it raises {type(error).__name__} ({error})"


def fitting_layout(layout: KvLayout, shape: Shape, context_tokens: int) -> KvLayout:
    """`layout` for pools of that shape. Layers with states are numbered after those with K and V."""
    whole = replace(
        layout, layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, total_kv_heads=shape.kv_heads
    )
    if shape.stored is not None:
        whole = replace(whole, dtype=shape.stored, scale=1.0)
    sizes = {shape.layers + at: state_bytes(parts) for at, parts in enumerate(shape.states)}
    return in_groups(whole, shape.windows, context_tokens, sizes, range(shape.layers))
