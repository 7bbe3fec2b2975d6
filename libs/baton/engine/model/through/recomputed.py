"""The last way to run a model: no cache, but a pass over a row's whole text wherever logits of it are wanted.

For models that keep what pages cannot hold. Rows keep their tokens in pages, so that prefixes, chunks, preemption and
handoffs are what they are for any model; a chunk whose logits nobody wants costs nothing, and each token that is drawn
a pass over all before it.

The logits after a token are, by definition, those that `generate` of `transformers` takes for the text up to there
when it keeps no cache. Mostly all positions of a text have theirs from one pass; where what follows a token changes
its logits, each position that is asked for has a pass of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from baton.core.errors import CheckpointError
from baton.core.layout import KvLayout
from baton.engine.batch import StepBatch
from baton.engine.model.through.attention import Shape
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.rows import rows_of
from baton.engine.model.through.selfcheck import Expected, alike
from baton.engine.model.through.token_pages import SHAPE, TokenPages

# Models whose attention to long texts, but not to short ones, is another at a token once others follow.
_CHANGES_LATER = {"reformer"}
_TRIED_TOKENS = 12  # of a made-up text, between passes that are tried, or in all of them


@dataclass(frozen=True, slots=True)
class RecomputedPlan:
    """`at_once`: one pass gives the logits of all positions of a text."""

    model: PreTrainedModel
    vocab_size: int
    at_once: bool
    shape: ClassVar[Shape] = SHAPE
    passes: ClassVar[Passes] = Passes.RECOMPUTED

    def steps(self, layout: KvLayout, own_kernels: bool) -> RecomputedSteps:
        """The model on pools of `layout`."""
        del own_kernels  # its attention is its own
        return RecomputedSteps(self, layout)

    @torch.inference_mode()
    def logits(self, text: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """Those after the tokens at `positions` of a text, int64 [S], rising: [L, V]."""
        if not self.at_once:
            return torch.stack([_following(self.model, text[: position + 1]) for position in positions])
        inputs: dict[str, Any] = {"input_ids": text[None, : positions[-1] + 1], "use_cache": False}
        at = torch.tensor(positions, device=text.device)
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            return _passed(self.model, {**inputs, "logits_to_keep": at})
        return _passed(self.model, inputs)[at]


class RecomputedSteps:
    """Steps of a model whose rows keep their tokens. Use from one thread at a time."""

    def __init__(self, plan: RecomputedPlan, layout: KvLayout) -> None:
        self._plan = plan
        self._pages = TokenPages(layout)

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._pages.bind_pool(pool)

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        """Logits of `batch.logit_rows`."""
        self._pages.write(batch.slots, batch.token_ids)
        if on_layer is not None:
            on_layer(0)
        logits = [torch.empty((0, self._plan.vocab_size), device=batch.token_ids.device)]
        for row in rows_of(batch):
            [length], [seq_len] = row.q_lens_host, row.seq_lens_host
            if wanted := row.logit_rows.tolist():
                text = self._pages.read(row.page_table[0], seq_len)
                logits.append(self._plan.logits(text, [seq_len - length + at for at in wanted]).float())
        return torch.cat(logits)


def recomputed(
    model: PreTrainedModel, expected: Expected, check: Callable[[RecomputedPlan, Expected], None]
) -> RecomputedPlan:
    """The plan that gives the logits that are meant, whatever steps a text is cut into. `check(plan, expected)` raises
    CheckpointError where it does not. Raises CheckpointError, with the reason, when there is none."""
    if getattr(model.config, "num_buckets", 0) is None and "lsh" in model.config.attn_layers:
        raise CheckpointError("config.json has num_buckets = null: its attention hangs on the first text that it reads")
    vocab_size = expected.logits[0].shape[-1]
    if model.config.model_type not in _CHANGES_LATER:
        if _at_once(model, expected):
            plan = RecomputedPlan(model, vocab_size, at_once=True)
            check(plan, expected)
            return plan
        if getattr(model.config, "is_decoder", None) is False:
            raise CheckpointError("config.json has is_decoder = false: tokens see those that follow them")
    plan = RecomputedPlan(model, vocab_size, at_once=False)
    device = next(model.parameters()).device
    rows = [tokens[:_TRIED_TOKENS] for tokens in expected.rows]  # as many passes as tokens
    texts = [torch.tensor(tokens, device=device) for tokens in rows]
    one_by_one = Expected(rows, [plan.logits(text, range(len(text))).float() for text in texts])
    try:
        check(plan, one_by_one)
    except CheckpointError as error:
        raise CheckpointError("its logits of a text are not the same each time") from error
    return plan


def _at_once(model: PreTrainedModel, expected: Expected) -> bool:
    """Whether logits amid a text are those that are meant: those of the text up to there."""
    device = next(model.parameters()).device
    ours, theirs = [], []
    for tokens, logits_TV in zip(expected.rows, expected.logits, strict=True):
        for end in sorted({len(tokens), *range(1, len(tokens), _TRIED_TOKENS)}):
            ours.append(_following(model, torch.tensor(tokens[:end], device=device)).float())
            theirs.append(logits_TV[end - 1])
    return alike(torch.stack(ours), torch.stack(theirs), exact=model.dtype == torch.float32)


def _following(model: PreTrainedModel, text: torch.Tensor) -> torch.Tensor:
    """Logits [V] of the token after a text."""
    return _passed(model, model.prepare_inputs_for_generation(text[None], use_cache=False))[-1]


def _passed(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits [n, V]. Random numbers, by which some models sort tokens, are the same in each pass."""
    device = model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        logits: torch.Tensor = model(**inputs).logits[0]
    return logits
