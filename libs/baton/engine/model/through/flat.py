"""All rows of a step in one pass of the model, whose attention is answered from pages: for most architectures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from baton.core.errors import CheckpointError
from baton.core.layout import KvLayout
from baton.engine.attention import AttentionBackend, Scoring, TorchAttention, Window
from baton.engine.batch import StepBatch
from baton.engine.cpu import attention as cpu_attention
from baton.engine.cpu.attention import CpuAttention
from baton.engine.cpu.library import kernels
from baton.engine.cuda import attention as cuda_attention
from baton.engine.grouped_attention import attention_of
from baton.engine.model.through.attention import PagedCalls, Shape, shape_of
from baton.engine.model.through.interface import MODEL_ERRORS, NAME, NOT_ASKED, Listener, listening
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.probe import Probe, Site

_PROBED_TOKENS = 3


@dataclass(frozen=True, slots=True)
class FlatPlan:
    """What a model was found to ask of attention."""

    model: PreTrainedModel
    sites: tuple[Site, ...]
    shape: Shape
    vocab_size: int
    passes: ClassVar[Passes] = Passes.TOGETHER

    @classmethod
    @torch.inference_mode()
    def of(cls, model: PreTrainedModel, context_tokens: int) -> FlatPlan:
        """Run the model once, at the end of the longest context. Raises CheckpointError when it does not ask for
        attention, or for some that pages cannot answer."""
        model.set_attn_implementation(NAME)
        device = next(model.parameters()).device
        listener = Probe(context_tokens, device)
        token_ids = torch.zeros(_PROBED_TOKENS, dtype=torch.int64, device=device)
        positions = torch.arange(context_tokens - _PROBED_TOKENS, context_tokens, device=device)
        try:
            logits = _run(model, listener, token_ids, positions)
        except MODEL_ERRORS as error:
            if not listener.sites:
                raise CheckpointError(NOT_ASKED) from error
            raise CheckpointError(f"it does not take positions up to {context_tokens} ({error})") from error
        if not listener.sites:
            raise CheckpointError(NOT_ASKED)
        return cls(model, tuple(listener.sites), shape_of(listener.sites), logits.shape[-1])

    def steps(self, layout: KvLayout, own_kernels: bool) -> FlatSteps:
        """The model on pools of `layout`. `own_kernels`: Baton's attention on a CPU, where it can be had."""
        weight, heads = next(self.model.parameters()), self.shape.heads
        device, dtype = weight.device, weight.dtype
        name = str(dtype).removeprefix("torch.")
        own = kernels() if own_kernels and cpu_attention.supports(layout, name) else None
        own = own.separate() if own is not None else None
        workspace = cuda_attention.workspace_of(device)

        def backend(layout: KvLayout, windows: Sequence[Window], scoring: Scoring) -> AttentionBackend:
            if device.type == "cuda":
                return cuda_attention.backend(layout, heads, windows, device, scoring, dtype, workspace)
            if own is not None:
                return CpuAttention(own, layout, windows, False, scoring, name)
            return TorchAttention(layout, windows, scoring, dtype)

        return FlatSteps(self, attention_of(layout, self.shape.windows, self.shape.scoring, backend))


class FlatSteps:
    """Steps of a model as one sequence of tokens with positions. Use from one thread at a time."""

    def __init__(self, plan: FlatPlan, backend: AttentionBackend) -> None:
        self._model = plan.model
        self._backend = backend
        self._calls = PagedCalls(plan.sites, plan.shape, backend, next(plan.model.parameters()).device)
        self._picks_rows = "logits_to_keep" in inspect.signature(plan.model.forward).parameters

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._backend.bind_pool(pool)

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        self._backend.plan(batch)
        self._calls.begin(on_layer)
        if self._picks_rows:
            logits = _run(self._model, self._calls, batch.token_ids, batch.positions, logits_to_keep=batch.logit_rows)
        else:
            logits = _run(self._model, self._calls, batch.token_ids, batch.positions)[batch.logit_rows]
        self._calls.end()
        return logits


def _run(
    model: PreTrainedModel,
    listener: Listener,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    **options: torch.Tensor,
) -> torch.Tensor:
    """Logits [T, V], or of the rows that `options` keep."""
    # With a mask of ones nobody looks for several texts in the positions.
    options["attention_mask"] = torch.ones((1, len(token_ids)), dtype=torch.int64, device=token_ids.device)
    with listening(listener):
        out = model(input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **options)
    logits: torch.Tensor = out.logits[0]
    return logits
