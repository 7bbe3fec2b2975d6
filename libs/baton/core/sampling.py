"""How the next token is chosen: the parameters of a request, validated once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.core.errors import InvalidRequest
from baton.core.structure import Structure

MAX_TOP_LOGPROBS = 20
SEED_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request.

    The same logits, parameters, seed and position always give the same token, on any worker and in any batch.
    `max_tokens` and `min_tokens` count output tokens over all attempts. `top_logprobs`: None = no logprobs,
    0 = the chosen token's only, k = also the k most likely. `prompt_logprobs` the same for prompt positions.
    `structure`: what all of the output must look like; it ends where that ends, whatever `ignore_eos` says.
    Raises InvalidRequest, naming the field, when a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    structure: Structure | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("top_k", self.top_k, 0, 1 << 30)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("max_tokens", self.max_tokens, 1, 1 << 31)
        _within("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.top_logprobs is not None:
            _within("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.prompt_logprobs is not None:
            _within("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        for token, bias in self.logit_bias.items():
            if token < 0:
                raise InvalidRequest(f"logit_bias names token {token}; ids are not negative", param="logit_bias")
            _within("logit_bias", bias, -100.0, 100.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def plain(self) -> bool:
        """True when logits are used as they are: no penalty, no bias, no minimum length."""
        return (
            self.repetition_penalty == 1.0
            and self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
            and not self.logit_bias
            and self.min_tokens == 0
        )


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    too_low = value <= low if open_low else value < low
    if math.isnan(value) or too_low or value > high:
        bracket = "(" if open_low else "["
        raise InvalidRequest(f"{name} is {value}; it must be in {bracket}{low}, {high}]", param=name)
