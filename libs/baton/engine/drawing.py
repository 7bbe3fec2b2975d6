"""From a step's logits to what its rows draw: joins the plan's rows with the sampler.

In three acts, so that the middle one can run where and when the model runs: `Draws` is prepared on the host, `launch`
makes the draws from the logits, sends the results to the host and waits for nothing, `LaunchedDraws.read` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from baton.core.errors import BatonError
from baton.engine.api import TokenLogprob
from baton.engine.grammar.masks import MaskRow, StepMasks
from baton.engine.grammar.matcher import Matcher
from baton.engine.plan import PlannedRow
from baton.engine.sampler import (
    LogprobTensors,
    NonFiniteLogits,
    Sampled,
    SampleRow,
    launch_prompt_logprobs,
    launch_sample,
)
from baton.engine.token_counts import TokenCounts, penalizes
from baton.engine.transfer import indices


@dataclass(slots=True)
class Drawn:
    """By index of the plan's rows: tokens with their logprobs, new prompt logprobs, and rows that cannot go on."""

    tokens: dict[int, tuple[int, TokenLogprob | None]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    failed: dict[int, BatonError] = field(default_factory=dict)
    forced: dict[int, Sequence[int]] = field(default_factory=dict)  # see StepMasks
    mask_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _PromptDraw:
    """Logits `start:end` are of a prompt, whose `following` tokens' logprobs are wanted, and the `k` likeliest."""

    row: int
    start: int
    end: int
    following: list[int]
    k: int


@dataclass(slots=True)
class Draws:
    """What is to be drawn in a step. `rows[i]` is of the plan's row `index[i]`, from logits `at[i]`."""

    rows: list[SampleRow] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    prompts: list[_PromptDraw] = field(default_factory=list)
    masks: list[MaskRow] = field(default_factory=list)

    @classmethod
    def of(
        cls, rows: Sequence[PlannedRow], eos_token_ids: frozenset[int], vocab_size: int, device: torch.device
    ) -> Draws:
        """Also notes in each request that draws where its token will be among those of the step."""
        draws = cls()
        end = 0
        for index, row in enumerate(rows):
            request = row.request
            if request.pooled is not None:
                continue  # no logits are made for it
            start, end = end, end + row.end - row.logits_start
            if request.prompt_logprobs is not None and not row.late:
                following = request.tokens.view[row.start + 1 : row.end + 1].tolist()
                k = request.sampling.prompt_logprobs or 0
                draws.prompts.append(_PromptDraw(index, start, end - row.draws, following, k))
            if row.draws:
                if request.matcher is not None:
                    draws.masks.append(_mask_row(row, len(draws.rows), request.matcher, eos_token_ids))
                request.token_place = len(draws.rows)
                draws.rows.append(_sample_row(row, eos_token_ids, vocab_size, device))
                draws.index.append(index)
                draws.at.append(end - 1)
        return draws

    def launch(self, logits: torch.Tensor, masks: StepMasks | None = None) -> LaunchedDraws:
        """Draw from `logits` [L, V], the batch's, in its order. Counts what was drawn for the requests' penalties.

        `masks`: of `self.masks`, if there are any.
        """
        chosen = logits if len(self.rows) == len(logits) else logits[indices(self.at, logits.device)]
        sampled = launch_sample(chosen, self.rows, masks)
        for i, row in enumerate(self.rows):
            if row.counts is not None:
                row.counts.add(sampled.token_ids[i : i + 1])
        prompts = [launch_prompt_logprobs(logits[p.start : p.end], p.following, p.k).to_host() for p in self.prompts]
        return LaunchedDraws(self, sampled.token_ids, sampled.to_host(), prompts, masks)


@dataclass(frozen=True, slots=True)
class LaunchedDraws:
    """What a step draws: `token_ids`, int64 [N] in order of `draws.rows`, on the device; the rest is, or will be, on
    the host."""

    draws: Draws
    token_ids: torch.Tensor
    sampled: Sampled
    prompts: list[LogprobTensors]
    masks: StepMasks | None = None

    def read(self) -> Drawn:
        """What was drawn, once the step has ended. A row with unusable logits is in `failed`, and the others have
        drawn what they would have drawn without it."""
        drawn = Drawn()
        unusable = self.sampled.unusable
        result = self.sampled.read()
        for i, index in enumerate(self.draws.index):
            if i in unusable:
                error = f"logits of a token have no finite maximum: {unusable[i]}"
                drawn.failed[index] = NonFiniteLogits([index], error)
            else:
                drawn.tokens[index] = result.token_ids[i], result.logprobs[i]
        if self.masks is not None:
            drawn.mask_s = self.masks.seconds
            drawn.failed |= {self.draws.index[i]: error for i, error in self.masks.failed.items()}
            drawn.forced = {self.draws.index[i]: forced for i, forced in self.masks.forced.items()}
        for prompt, logprobs in zip(self.draws.prompts, self.prompts, strict=True):
            drawn.prompt_logprobs[prompt.row] = logprobs.read()
        return drawn


def _sample_row(row: PlannedRow, eos_token_ids: frozenset[int], vocab_size: int, device: torch.device) -> SampleRow:
    """`row.end` is the position of the token to be drawn; what the host knows may end before it."""
    request = row.request
    params = request.sampling
    masked = request.matcher is not None
    if params.plain:
        return SampleRow(params, row.end, masked=masked)
    if request.counts is None and penalizes(params):
        prompt, output = request.tokens.view[: request.prompt_tokens], request.tokens.view[request.prompt_tokens :]
        request.counts = TokenCounts(prompt, output, vocab_size, device)
    return SampleRow(params, row.end, request.counts, row.end - request.prompt_tokens, eos_token_ids, masked)


def _mask_row(row: PlannedRow, place: int, matcher: Matcher, eos_token_ids: frozenset[int]) -> MaskRow:
    """Of draw number `place`. Reads where the step before puts the row's last token, if the host does not know it."""
    request = row.request
    barred: tuple[int, ...] = ()
    if row.end - request.prompt_tokens < request.sampling.min_tokens:
        barred = (*eos_token_ids, *request.sampling.stop_token_ids)
    since = matcher.followed
    late_place = request.token_place if row.late else None
    return MaskRow(place, matcher, since, request.output[since:].copy(), late_place, barred)
