"""The fields that chat completions and completions share, and the sampling parameters that they make.

Beyond OpenAI's fields these are understood, as in other servers: top_k, min_p, repetition_penalty, min_tokens,
stop_token_ids, ignore_eos.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from baton.core.errors import InvalidRequest
from baton.core.sampling import SEED_MASK, SamplingParams
from baton.gateway.openai.fields import Body
from baton.gateway.text_model import TextModel

MAX_CHOICES = 128
MAX_STOPS = 4
_LEAST_TOP_P = 1e-6  # top_p = 0 means "the most likely token only"; the engine wants a positive number
_GOLDEN_RATIO = 0x9E3779B97F4A7C15


class StreamOptions(Body):
    include_usage: bool = False


class GenerationFields(Body):
    """Fields of both endpoints, validated one by one; None = not given."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: Annotated[list[str], Field(default_factory=list)]
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(default_factory=list)]
    ignore_eos: bool | None = None
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stop(cls, value: Any) -> list[str]:
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
            raise ValueError("a string or a list of strings is expected, none of them empty")
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop sequences are allowed, not {len(stops)}")
        return stops

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _no_stop_token_ids(cls, value: Any) -> Any:
        return [] if value is None else value

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        return self


class SamplingBuilder:
    """Makes the sampling parameters of each choice of one request. A seed is drawn once when the client gave none."""

    def __init__(
        self,
        fields: GenerationFields,
        model: TextModel,
        *,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> None:
        self._seed = secrets.randbits(64) if fields.seed is None else fields.seed & SEED_MASK
        self._min_tokens = fields.min_tokens or 0
        self._fixed = {
            **model.sampling_defaults,
            **_given(fields),
            "logit_bias": _logit_bias(fields.logit_bias or {}, model.vocab_size),
            "stop_token_ids": tuple(fields.stop_token_ids),
            "ignore_eos": bool(fields.ignore_eos),
            "top_logprobs": top_logprobs,
            "prompt_logprobs": prompt_logprobs,
        }
        for token in fields.stop_token_ids:
            if token >= model.vocab_size:
                raise InvalidRequest(f"stop_token_ids names token {token}; the vocabulary has {model.vocab_size}",
                                     param="stop_token_ids")  # fmt: skip

    def build(self, index: int, max_tokens: int) -> SamplingParams:
        """Parameters of choice `index`. Raises InvalidRequest."""
        return SamplingParams(
            **self._fixed, seed=seed_of_choice(self._seed, index), max_tokens=max_tokens, min_tokens=self._min_tokens
        )


def seed_of_choice(seed: int, index: int) -> int:
    """Seed of one choice: the first one's is the request's own, others are independent of it. Never 0 (= any)."""
    if index:
        seed = _mix((seed + index * _GOLDEN_RATIO) & SEED_MASK)
    return seed or _GOLDEN_RATIO


def _mix(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & SEED_MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & SEED_MASK
    return value ^ (value >> 31)


def _given(fields: GenerationFields) -> dict[str, Any]:
    given: dict[str, Any] = {
        "temperature": fields.temperature,
        "top_p": None if fields.top_p is None else max(fields.top_p, _LEAST_TOP_P),
        "top_k": None if fields.top_k is None else max(fields.top_k, 0),
        "min_p": fields.min_p,
        "repetition_penalty": fields.repetition_penalty,
        "presence_penalty": fields.presence_penalty,
        "frequency_penalty": fields.frequency_penalty,
    }
    return {name: value for name, value in given.items() if value is not None}


def _logit_bias(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocab_size):
            raise InvalidRequest(
                f"logit_bias names token {token!r}; keys are token ids from 0 to {vocab_size - 1}", param="logit_bias"
            )
    return {int(token): bias for token, bias in biases.items()}
