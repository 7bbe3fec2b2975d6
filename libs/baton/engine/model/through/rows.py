"""One pass of the model for each row of a step, with the model's own code throughout, over a cache that lies in pages.

For architectures whose attention does not go through the interface of `transformers` (biases by distance, such as
ALiBi, among them), or that keep more than keys and values: states, or an index of tokens. Slower: rows share nothing
but the weights' memory.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from baton.core.errors import CheckpointError
from baton.core.layout import KvLayout
from baton.engine.batch import StepBatch
from baton.engine.model.through.attention import Shape, padded_head_dim
from baton.engine.model.through.interface import MODEL_ERRORS
from baton.engine.model.through.kept import NOTHING_KEPT, KeptLayer, Notes
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.row_cache import RowCache, row_cache_like
from baton.engine.model.through.row_pages import RowPages

_PROBED_TOKENS = 3
_CACHES = ("past_key_values", "cache_params")  # what models call the cache that they are given


@dataclass(frozen=True, slots=True)
class RowsPlan:
    """What a model was found to keep: `kept`, by layer. `cache`: what it calls the cache, of class `cache_class`, that
    it is given; `inputs`: what it takes beside, of position_ids, attention_mask and logits_to_keep. `in_chunks`:
    whether it takes several tokens after others."""

    model: PreTrainedModel
    kept: tuple[KeptLayer, ...]
    cache: str
    cache_class: type[RowCache]
    inputs: frozenset[str]
    in_chunks: bool
    vocab_size: int
    passes: ClassVar[Passes] = Passes.APART

    @classmethod
    @torch.inference_mode()
    def of(
        cls, model: PreTrainedModel, context_tokens: int, with_positions: bool = True, in_chunks: bool = True
    ) -> RowsPlan:
        """Run the model, to see what cache it makes for itself, and what it keeps there. Without positions it counts
        them itself, from the length of its cache; if not `in_chunks`, it gets tokens after the first ones one by one.
        Raises CheckpointError when it keeps nothing, or something that has no place in pages, or forgets it."""
        model.set_attn_implementation("eager")
        known = inspect.signature(model.forward).parameters
        taken = frozenset(known) & {"position_ids", "attention_mask", "logits_to_keep"}
        if not with_positions:
            taken -= {"position_ids"}
        cache = next((name for name in _CACHES if name in known), None)
        if cache is None:
            raise CheckpointError(NOTHING_KEPT)
        device = next(model.parameters()).device
        tokens = torch.zeros(_PROBED_TOKENS, dtype=torch.int64, device=device)
        try:
            own = model(**_inputs(taken, tokens, 0), use_cache=True).get(cache)
            cache_class, notes = row_cache_like(own), Notes(own, device)
            noted = cache_class(notes)
            out = model(**_inputs(taken, tokens, 0), **{cache: noted}, use_cache=True)
        except MODEL_ERRORS as error:
            raise CheckpointError(f"what it keeps between tokens is of its own kind ({error})") from error
        kept = notes.kept(noted, _PROBED_TOKENS)
        if not any(layer.tracks for layer in kept):
            taken -= {"attention_mask"}  # of so many tokens as it has before it, but for attention
        if not in_chunks and not any(layer.states for layer in kept):
            raise CheckpointError("one token at a time is no better, for it keeps no states")

        def following() -> torch.Tensor:
            inputs = {**_inputs(taken, tokens, _PROBED_TOKENS), cache: cache_class(notes, len(kept))}
            logits: torch.Tensor = model(**inputs, use_cache=True).logits
            return logits

        if in_chunks and (forgotten := notes.forgotten(following)) is not None:
            raise CheckpointError(f"several tokens at once do not heed its {forgotten[0]} states")
        return cls(model, kept, cache, cache_class, taken, in_chunks, out.logits.shape[-1])

    @property
    def shape(self) -> Shape:
        tracked = [layer for layer in self.kept if layer.tracks]
        elements = max((layer.elements for layer in tracked), default=0)
        states = tuple(tuple(layer.states.values()) for layer in self.kept if layer.states)
        return Shape(len(tracked), 1, 1, padded_head_dim(-(-elements // 2)), (None,) * len(tracked), states=states)

    def steps(self, layout: KvLayout, own_kernels: bool) -> RowSteps:
        """The model on pools of `layout`."""
        del own_kernels  # its attention is its own
        return RowSteps(self, layout)


class RowSteps:
    """Steps of a model, row by row. Use from one thread at a time."""

    def __init__(self, plan: RowsPlan, layout: KvLayout) -> None:
        self._plan = plan
        self._pages = RowPages(layout, plan.kept, next(plan.model.parameters()).dtype)

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._pages.bind_pool(pool)

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        """Logits of `batch.logit_rows`. `on_layer` is called while the last tokens are at work: others are done."""
        rows = [piece for row in rows_of(batch) for piece in self._pieces(row)]
        logits = [self._pass(row, on_layer if row is rows[-1] else None) for row in rows]
        return torch.cat(logits)

    def _pieces(self, row: StepBatch) -> list[StepBatch]:
        """What goes through the model at once."""
        length = row.q_lens_host[0]
        if self._plan.in_chunks or length == row.seq_lens_host[0]:
            return [row]
        return [_piece(row, at) for at in range(length)]

    def _pass(self, row: StepBatch, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        taken = self._plan.inputs
        self._pages.begin(row, on_layer)
        cache = self._plan.cache_class(self._pages, len(self._plan.kept))
        inputs = _inputs(taken, row.token_ids, self._pages.cached_tokens)
        if "logits_to_keep" in taken:
            inputs["logits_to_keep"] = row.logit_rows
        out = self._plan.model(**inputs, **{self._plan.cache: cache}, use_cache=True)
        self._pages.end(cache)
        logits: torch.Tensor = out.logits[0]
        return logits if "logits_to_keep" in taken else logits[row.logit_rows]


def rows_of(batch: StepBatch) -> Iterator[StepBatch]:
    """Each row as a batch of its own."""
    wanted, start = batch.logit_rows.tolist(), 0
    for row, length in enumerate(batch.q_lens_host):
        new, one = slice(start, start + length), slice(row, row + 1)
        mine = [at - start for at in wanted[bisect_left(wanted, new.start) : bisect_left(wanted, new.stop)]]
        start += length
        yield StepBatch(
            token_ids=batch.token_ids[new],
            positions=batch.positions[new],
            slots=batch.slots[new],
            q_starts=batch.q_starts[row : row + 2] - batch.q_starts[row],
            seq_lens=batch.seq_lens[one],
            page_table=batch.page_table[one],
            logit_rows=torch.tensor(mine, dtype=torch.int64, device=batch.token_ids.device),
            q_lens_host=[length],
            seq_lens_host=batch.seq_lens_host[one],
            views=tuple(_states_of(view, one) for view in batch.views),
        )


def _piece(row: StepBatch, at: int) -> StepBatch:
    """A row's new token `at` alone. It finds the states that the tokens before it have left."""
    one = slice(at, at + 1)
    length = row.seq_lens_host[0] - row.q_lens_host[0] + at + 1
    return replace(
        row,
        token_ids=row.token_ids[one],
        positions=row.positions[one],
        slots=row.slots[one],
        q_starts=row.q_starts.clamp(max=1),
        seq_lens=torch.full_like(row.seq_lens, length),
        logit_rows=row.logit_rows[row.logit_rows == at] - at,
        q_lens_host=[1],
        seq_lens_host=[length],
        views=tuple(replace(view, state_sources=view.state_targets) for view in row.views) if at else row.views,
    )


def _states_of(view: StepBatch, rows: slice) -> StepBatch:
    """All that is asked of a view, with the states of those rows."""
    if view.state_sources is None or view.state_targets is None:
        return view
    return replace(view, state_sources=view.state_sources[rows], state_targets=view.state_targets[rows])


def _inputs(taken: frozenset[str], token_ids: torch.Tensor, cached_tokens: int) -> dict[str, Any]:
    """What a model is given beside its cache: new tokens, after `cached_tokens` others."""
    seq_len, device = cached_tokens + len(token_ids), token_ids.device
    inputs: dict[str, Any] = {"input_ids": token_ids[None]}
    if "position_ids" in taken:
        inputs["position_ids"] = torch.arange(cached_tokens, seq_len, device=device)[None]
    if "attention_mask" in taken:
        inputs["attention_mask"] = torch.ones((1, seq_len), dtype=torch.int64, device=device)
    return inputs
