"""From a step's logits to what its rows draw: joins the plan's rows with the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from baton.core.errors import InternalError
from baton.engine.api import TokenLogprob
from baton.engine.plan import PlannedRow
from baton.engine.sampler import NonFiniteLogits, SampleRow, prompt_logprobs, sample


@dataclass(slots=True)
class Drawn:
    """By index of the plan's rows: tokens with their logprobs, new prompt logprobs, and rows that cannot go on."""

    tokens: dict[int, tuple[int, TokenLogprob | None]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    failed: dict[int, InternalError] = field(default_factory=dict)


def draw(rows: Sequence[PlannedRow], logits: torch.Tensor, eos_token_ids: frozenset[int]) -> Drawn:
    """Draw the next token of each row that has reached its last one. `logits` [L, V] are the batch's, in its order.

    A row with unusable logits is in `failed`, and the others draw what they would have drawn without it.
    """
    drawn = Drawn()
    at: dict[int, int] = {}  # row -> where its last token's logits are
    end = 0
    for index, row in enumerate(rows):
        start, end = end, end + row.end - row.logits_start
        if row.request.prompt_logprobs is not None:
            drawn.prompt_logprobs[index] = _of_prompt(row, logits[start : end - row.draws])
        if row.draws:
            at[index] = end - 1
    while at:
        picked = list(at)
        chosen = logits if len(picked) == len(logits) else logits[list(at.values())]
        try:
            result = sample(chosen, [_sample_row(rows[index], eos_token_ids) for index in picked])
        except NonFiniteLogits as error:
            for bad in error.rows:
                drawn.failed[picked[bad]] = error
                del at[picked[bad]]
            continue
        drawn.tokens = dict(zip(picked, zip(result.token_ids, result.logprobs, strict=True), strict=True))
        break
    return drawn


def _of_prompt(row: PlannedRow, logits: torch.Tensor) -> list[TokenLogprob]:
    """Logprobs of the prompt tokens that follow each of the chunk's; the last chunk's last is the one to be drawn."""
    following = row.request.tokens.view[row.start + 1 : row.end + 1].tolist()
    return prompt_logprobs(logits, following, row.request.sampling.prompt_logprobs or 0)


def _sample_row(row: PlannedRow, eos_token_ids: frozenset[int]) -> SampleRow:
    request = row.request
    params, position = request.sampling, len(request.tokens)
    if params.plain:
        return SampleRow(params, position)
    prompt_ids: list[int] = []
    output_ids: list[int] = []
    if params.repetition_penalty != 1.0:
        prompt_ids = request.tokens.view[: request.prompt_tokens].tolist()
    if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
        output_ids = request.tokens.view[request.prompt_tokens :].tolist()
    return SampleRow(params, position, prompt_ids, output_ids, request.output_len, eos_token_ids)
