"""From logits to tokens: a pure function of logits, parameters, seed and position.

Last act of a step on the device. The same request draws the same tokens on any worker, in any batch and after a
resume, because its randomness is counted, not consumed: noise is a function of (seed, position, token id).
Knows nothing of requests, stop conditions or what a grammar is.

A row's logits pass through, in this order: logit bias, repetition penalty (over prompt and output; Keskar et al. 2019,
"CTRL"), frequency and presence penalty (over the output), minimum length (end-of-sequence and stop tokens barred, but
where a grammar allows no other), the grammar's mask, temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et
al. 2024), draw. Tokens exactly as likely as the last one kept are kept too, so that a cut does not depend on how ties
are sorted. Logprobs are of the model's own distribution: before all of that.

The draw is Gumbel-max rather than an inverse CDF: when logits differ by rounding (other batch, other worker), the
token changes with a probability of about that difference, while a CDF shifts at all its boundaries at once. It runs
in two stages, first over buckets of the vocabulary by their log-sum-exp, then within the bucket: the distribution is
the same, and noise is needed for V / 256 + 256 items instead of V.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from baton.core.errors import InternalError, InvalidRequest
from baton.core.sampling import SEED_MASK, SamplingParams
from baton.engine.api import TokenLogprob
from baton.engine.grammar.masks import StepMasks
from baton.engine.philox import gumbel
from baton.engine.token_counts import TokenCounts
from baton.engine.transfer import floats, indices, to_device, to_host

_BUCKET = 256
_HEAD = 256  # how many of the likeliest tokens top-p sorts at first, and by what factor it looks further
_HEAD_GROWTH = 16
_MIN_TEMPERATURE = 1e-30


class NonFiniteLogits(InternalError):
    """Rows of the batch have no finite greatest logit, so nothing can be drawn; `rows` are their indices."""

    def __init__(self, rows: list[int], message: str) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What the draw of one row depends on.

    `position` is the absolute position of the token being drawn. `counts` is read only by penalties, which need it,
    `output_len` (tokens of output so far, over all attempts) and `eos_token_ids` only by `min_tokens`. `masked`: the
    step's masks have a row for it, in which `min_tokens` is regarded already.
    """

    params: SamplingParams
    position: int
    counts: TokenCounts | None = None
    output_len: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    masked: bool = False


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One token per row, and its logprobs where the row's `top_logprobs` is not None."""

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raise InvalidRequest when `params` name tokens that the model does not have."""
    for name, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token in token_ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(f"{name} names token {token}; ids are 0 to {vocab_size - 1}", param=name)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn, still on the device: `token_ids` int64 [N], all of them ids of the vocabulary. A row whose
    `best` [N], its greatest logit, is not finite has drawn nothing that means anything."""

    token_ids: torch.Tensor
    best: torch.Tensor
    logprobs: LogprobTensors | None  # of the rows `logprob_rows`
    logprob_rows: list[int]

    def to_host(self) -> Sampled:
        """On the host; see baton.engine.transfer.to_host for when it may be read."""
        logprobs = self.logprobs and self.logprobs.to_host()
        return replace(self, token_ids=to_host(self.token_ids), best=to_host(self.best), logprobs=logprobs)

    @property
    def unusable(self) -> dict[int, float]:
        """Greatest logits of rows that have no finite one, by row. Reads the device."""
        return {i: value for i, value in enumerate(self.best.tolist()) if not math.isfinite(value)}

    def read(self) -> SampleResult:
        """Tokens and logprobs on the host. Reads the device."""
        logprobs: list[TokenLogprob | None] = [None] * len(self.token_ids)
        if self.logprobs is not None:
            for row, logprob in zip(self.logprob_rows, self.logprobs.read(), strict=True):
                logprobs[row] = logprob
        return SampleResult(self.token_ids.tolist(), logprobs)


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Logprobs of L positions, still on the device: of a token each, and of the `top[i]` likeliest of position i."""

    token_ids: torch.Tensor  # int64 [L]
    chosen: torch.Tensor  # [L]
    values: torch.Tensor  # [L, K], best first
    ids: torch.Tensor  # int64 [L, K]
    top: Sequence[int]

    @classmethod
    def of(cls, logits_LV: torch.Tensor, token_ids_L: torch.Tensor, top: Sequence[int]) -> LogprobTensors:
        """Raw log-softmax: before bias, penalties and temperature."""
        total_L1 = logits_LV.logsumexp(dim=-1, keepdim=True)
        chosen_L = (logits_LV.gather(1, token_ids_L[:, None]) - total_L1)[:, 0]
        head = logits_LV.topk(min(max(top, default=0), logits_LV.shape[1]))
        return cls(token_ids_L, chosen_L, head.values - total_L1, head.indices, top)

    def to_host(self) -> LogprobTensors:
        """On the host; see baton.engine.transfer.to_host for when it may be read."""
        return LogprobTensors(
            to_host(self.token_ids), to_host(self.chosen), to_host(self.values), to_host(self.ids), self.top
        )

    def read(self) -> list[TokenLogprob]:
        """Reads the device."""
        values, ids = self.values.tolist(), self.ids.tolist()
        return [
            TokenLogprob(token, logprob, tuple(zip(ids[i][:k], values[i][:k], strict=True)))
            for i, (token, logprob, k) in enumerate(
                zip(self.token_ids.tolist(), self.chosen.tolist(), self.top, strict=True)
            )
        ]


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> SampleResult:
    """Draw one token per row from float32 logits [N, V], which are left as they are.

    Raises NonFiniteLogits, an InternalError, naming rows whose logits hold NaN or +inf or nothing but -inf.
    """
    sampled = launch_sample(logits, rows)
    if unusable := sampled.unusable:
        raise NonFiniteLogits(
            list(unusable),
            f"logits of batch rows {list(unusable)} have no finite maximum: {list(unusable.values())}",
        )
    return sampled.read()


@torch.inference_mode()
def launch_sample(logits: torch.Tensor, rows: Sequence[SampleRow], masks: StepMasks | None = None) -> Sampled:
    """Draw one token per row from float32 logits [N, V], which are left as they are, and wait for nothing.

    `masks`: what grammars allow, of rows that are `masked`. On a GPU the host reads nothing back here. Rows with
    unusable logits harm no others; see `Sampled.unusable`.
    """
    if len(rows) != len(logits):
        raise InternalError(f"{len(rows)} rows to sample from {len(logits)} rows of logits")
    if not rows:
        nothing = torch.empty(0, dtype=torch.int64, device=logits.device)
        return Sampled(nothing, logits.new_empty(0), None, [])
    best, token_ids = _greatest(logits)
    altered = [i for i, row in enumerate(rows) if row.masked or not row.params.plain]
    logits_after = logits
    if altered:
        logits_after = logits.clone()
        for i in altered:
            _alter(logits_after[i], rows[i])
        if masks is not None:
            masks.bar(logits_after)
        at = indices(altered, logits.device)
        best_before = best[at]
        best_after, ids_after = _greatest(logits_after[at])
        token_ids.index_copy_(0, at, ids_after)
        best.index_copy_(0, at, torch.where(torch.isfinite(best_before), best_after, best_before))
    drawn = [i for i, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        drawn_ids = _draw(_select(logits_after, drawn).clone(), [rows[i] for i in drawn])
        token_ids.index_copy_(0, indices(drawn, logits.device), drawn_ids)
    token_ids.clamp_(max=logits.shape[1] - 1)
    wanted = [i for i, row in enumerate(rows) if row.params.top_logprobs is not None]
    logprobs = None
    if wanted:
        top = [rows[i].params.top_logprobs or 0 for i in wanted]
        logprobs = LogprobTensors.of(_select(logits, wanted), _select(token_ids, wanted), top)
    return Sampled(token_ids, best, logprobs, wanted)


@torch.inference_mode()
def launch_prompt_logprobs(logits: torch.Tensor, next_token_ids: Sequence[int], k: int) -> LogprobTensors:
    """Logprobs of the tokens that followed in the prompt, and of the `k` likeliest: logits [L, V], L token ids."""
    return LogprobTensors.of(logits, indices(next_token_ids, logits.device), [k] * len(logits))


def _greatest(logits_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest logit of each row [N], NaN if there is one, and its id, the least of equals, int64 [N].

    numpy finds places several times faster than torch does on a CPU.
    """
    if logits_NV.device.type == "cpu":
        ids_N = torch.from_numpy(logits_NV.numpy().argmax(axis=-1))
        return logits_NV.gather(1, ids_N[:, None])[:, 0], ids_N
    best_N, ids_N = logits_NV.max(dim=-1)
    return best_N, ids_N


def _alter(logits_V: torch.Tensor, row: SampleRow) -> None:
    """Apply bias, penalties and minimum length of one row, in place."""
    params, device = row.params, logits_V.device
    if params.logit_bias:
        logits_V.index_add_(0, indices(params.logit_bias, device), floats(params.logit_bias.values(), device))
    if row.counts is not None:
        row.counts.penalize(logits_V, params)
    if row.output_len < params.min_tokens and not row.masked:
        barred = set(params.stop_token_ids) | (set() if params.ignore_eos else row.eos_token_ids)
        logits_V.index_fill_(0, indices((token for token in barred if token < len(logits_V)), device), -math.inf)


def _draw(logits_RV: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """One token id per row, drawn after temperature and cuts. Overwrites `logits_RV`."""
    device = logits_RV.device
    params = [row.params for row in rows]
    temperatures = floats((p.temperature for p in params), device).clamp_min(_MIN_TEMPERATURE)
    # Relative to the greatest, which becomes 0, so that no temperature overflows.
    logits_RV.sub_(logits_RV.max(dim=-1, keepdim=True).values).div_(temperatures[:, None])
    _cut_top_k(logits_RV, [p.top_k for p in params])
    _cut_top_p(logits_RV, [p.top_p for p in params])
    _cut_min_p(logits_RV, [p.min_p for p in params])
    seeds_R = indices((_as_int64(p.seed) for p in params), device)
    positions_R = indices((row.position for row in rows), device)
    return _gumbel_max(logits_RV, seeds_R, positions_R)


def _gumbel_max(logits_RV: torch.Tensor, seeds_R: torch.Tensor, positions_R: torch.Tensor) -> torch.Tensor:
    buckets_RNC = F.pad(logits_RV, (0, -logits_RV.shape[1] % _BUCKET), value=-math.inf).unflatten(1, (-1, _BUCKET))
    mass_RN = buckets_RNC.logsumexp(dim=-1).double()
    bucket_R = (mass_RN + gumbel(seeds_R, positions_R, 0, mass_RN.shape[1])).argmax(dim=-1)
    within_RC = buckets_RNC[torch.arange(len(bucket_R), device=bucket_R.device), bucket_R].double()
    return bucket_R * _BUCKET + (within_RC + gumbel(seeds_R, positions_R, 1, _BUCKET)).argmax(dim=-1)


def _cut_top_k(logits_RV: torch.Tensor, top_k: Sequence[int]) -> None:
    """Bar all but the k likeliest tokens of each row; 0 is no cut."""
    cut = [i for i, k in enumerate(top_k) if 0 < k < logits_RV.shape[1]]
    if cut:
        ks = indices((top_k[i] for i in cut), logits_RV.device)
        head = _select(logits_RV, cut).topk(max(top_k[i] for i in cut)).values
        _bar_below(logits_RV, cut, head.gather(1, ks[:, None] - 1))


def _cut_top_p(logits_RV: torch.Tensor, top_p: Sequence[float]) -> None:
    """Bar all but the smallest set of likeliest tokens that has a probability of at least `top_p`; 1 is no cut.

    On a CPU only as many of the likeliest tokens are sorted as turn out to be needed; elsewhere to look how many that
    are would mean to wait.
    """
    cut = [i for i, p in enumerate(top_p) if p < 1.0]
    on_host = logits_RV.device.type == "cpu"
    width = min(_HEAD, logits_RV.shape[1]) if on_host else logits_RV.shape[1]
    while cut:
        wanted = to_device(torch.tensor([top_p[i] for i in cut], dtype=torch.float64), logits_RV.device)[:, None]
        logits = _select(logits_RV, cut)
        head = logits.topk(width).values
        reached = (head - logits.logsumexp(dim=-1, keepdim=True)).double().exp().cumsum(dim=-1) >= wanted
        if width == logits_RV.shape[1]:
            reached[:, -1] = True  # all of it is enough, whatever rounding says
        least = head.gather(1, reached.int().argmax(dim=-1, keepdim=True))
        if width == logits_RV.shape[1]:
            _bar_below(logits_RV, cut, least)
            return
        found = reached.any(dim=-1)
        done = found.tolist()
        _bar_below(logits_RV, [i for i, ok in zip(cut, done, strict=True) if ok], least[found])
        cut = [i for i, ok in zip(cut, done, strict=True) if not ok]
        width = min(width * _HEAD_GROWTH, logits_RV.shape[1])


def _cut_min_p(logits_RV: torch.Tensor, min_p: Sequence[float]) -> None:
    """Bar tokens less likely than `min_p` times the likeliest, whose logit is 0; 0 is no cut."""
    cut = [i for i, p in enumerate(min_p) if p > 0.0]
    if cut:
        _bar_below(logits_RV, cut, floats((math.log(min_p[i]) for i in cut), logits_RV.device)[:, None])


def _select(x: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """These rows of `x`, in rising order; no copy when they are all."""
    return x if len(rows) == len(x) else x[indices(rows, x.device)]


def _bar_below(logits_RV: torch.Tensor, rows: Sequence[int], least_C1: torch.Tensor) -> None:
    least_R1 = logits_RV.new_full((len(logits_RV), 1), -math.inf)
    least_R1.index_copy_(0, indices(rows, logits_RV.device), least_C1)
    logits_RV.masked_fill_(logits_RV < least_R1, -math.inf)


def _as_int64(seed: int) -> int:
    """The signed integer with the same low 64 bits."""
    seed &= SEED_MASK
    return seed - (1 << 64) if seed >> 63 else seed
