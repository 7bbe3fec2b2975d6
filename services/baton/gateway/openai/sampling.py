"""The fields that chat completions and completions share, and the sampling parameters that they make.

Beyond OpenAI's fields these are understood, as in other servers: top_k, min_p, repetition_penalty, min_tokens,
stop_token_ids, ignore_eos, and those of baton.gateway.structure_fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from baton.core.errors import InvalidRequest
from baton.gateway.http.fields import Body
from baton.gateway.sampling import SamplingBuilder
from baton.gateway.structure_fields import StructureFields
from baton.gateway.text_model import TextModel

MAX_CHOICES = 128
MAX_STOPS = 4
_SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "ignore_eos",
)  # fmt: skip


class StreamOptions(Body):
    include_usage: bool = False


class GenerationFields(StructureFields):
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


def sampling_of(
    fields: GenerationFields,
    model: TextModel,
    *,
    top_logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    ends: Sequence[int] = (),
) -> SamplingBuilder:
    """The sampling that `fields` ask for. `ends`: tokens that end the answer besides theirs. Raises InvalidRequest."""
    given = {name: getattr(fields, name) for name in _SAMPLING_FIELDS}
    structure, structure_field = fields.structure()
    return SamplingBuilder(
        model,
        {**given, "top_logprobs": top_logprobs, "prompt_logprobs": prompt_logprobs, "structure": structure},
        structure_field=structure_field,
        seed=fields.seed,
        logit_bias=fields.logit_bias,
        stop_token_ids=[*fields.stop_token_ids, *ends],
        min_tokens=fields.min_tokens or 0,
    )
