"""How a model of `transformers` runs on pages, found by trying one way after the other.

Used while a model is loaded. No list says what runs, but for what no short trial can show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from transformers import PreTrainedModel

from baton.core.errors import CheckpointError, InternalError
from baton.core.layout import KvLayout
from baton.engine.batch import StepBatch
from baton.engine.grouping import in_groups
from baton.engine.model.through.attention import Shape
from baton.engine.model.through.flat import FlatPlan
from baton.engine.model.through.interface import MODEL_ERRORS
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
# What is right for short texts only.
_REFUSED = {"BigBirdForCausalLM": "its attention changes with the length of a text"}


class Steps(Protocol):
    """A model that runs steps on pages."""

    def bind_pool(self, pool: torch.Tensor) -> None:
        """Use `pool`; it stays the caller's."""

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None, /) -> torch.Tensor:
        """As `ThroughRunner.forward`, with logits of any dtype."""


class Plan(Protocol):
    """A way for a model to run steps on pages."""

    @property
    def shape(self) -> Shape: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def rows_apart(self) -> bool:
        """Whether each row of a step is a pass of its own."""

    def steps(self, layout: KvLayout, own_kernels: bool) -> Steps: ...


@torch.inference_mode()
def find_plan(model: PreTrainedModel, layout: KvLayout, context_tokens: int, own_kernels: bool) -> Plan:
    """A way that passes the self-check on pools like `layout`. Raises CheckpointError, with what was wrong with each,
    when there is none."""
    name, device = type(model).__name__, next(model.parameters()).device
    if name in _REFUSED:
        raise CheckpointError(f"{name} cannot run through transformers: {_REFUSED[name]}")

    def own(token_ids: list[int]) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=torch.tensor([token_ids], device=device), use_cache=False).logits[0]
        return logits.float()

    try:
        expected = Expected.of(own, model.get_input_embeddings().num_embeddings, context_tokens)
    except MODEL_ERRORS as error:
        raise CheckpointError(
            f"{name} cannot run through transformers: it does not take text alone ({error})"
        ) from error
    reasons = []
    for attempt in _WAYS:
        try:
            plan = attempt(model, context_tokens=context_tokens)
            fitting = fitting_layout(layout, plan.shape, context_tokens)
            steps = plan.steps(fitting, own_kernels)
            steps.bind_pool(KvPool(fitting, pages_needed(fitting), device=device).tensor)
            check_self(steps.forward, expected, fitting, device)
            return plan
        except (CheckpointError, InternalError) as error:
            reasons.append(error.message)
        except MODEL_ERRORS as error:
            reasons.append(f"it raises {type(error).__name__} ({error})")
    why = "; ".join(dict.fromkeys(reasons))
    raise CheckpointError(f"{name} cannot run through transformers: {why}")


def fitting_layout(layout: KvLayout, shape: Shape, context_tokens: int) -> KvLayout:
    """`layout` for pools of that shape. Layers with states are numbered after those with K and V."""
    whole = replace(
        layout, layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, total_kv_heads=shape.kv_heads
    )
    sizes = {shape.layers + at: state_bytes(parts) for at, parts in enumerate(shape.states)}
    return in_groups(whole, shape.windows, context_tokens, sizes, range(shape.layers))
