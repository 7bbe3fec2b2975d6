"""`POST /v1/completions`: text or token ids in, their continuation out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidRequest
from baton.core.sampling import MAX_TOP_LOGPROBS
from baton.gateway import metrics
from baton.gateway.generation import Choice
from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.context import context_of
from baton.gateway.http.fields import parse
from baton.gateway.openai.completion_choice import best_of, prompt_only
from baton.gateway.openai.completion_prompts import EncodedPrompt, check_tokens, encode_texts
from baton.gateway.openai.completion_shape import CompletionShape
from baton.gateway.openai.prompts import as_prompts
from baton.gateway.openai.sampling import MAX_CHOICES, GenerationFields, sampling_of
from baton.gateway.openai.writer import ChoicesWriter, Select
from baton.gateway.respond import Responder
from baton.gateway.service import Service

_DEFAULT_MAX_TOKENS = 16  # OpenAI's documented default for this endpoint


class CompletionRequest(GenerationFields):
    prompt: list[Any]  # texts, or lists of token ids; validated as a whole, since OpenAI's four forms overlap
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    suffix: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> list[Any]:
        return as_prompts(value)

    @property
    def shown(self) -> int:
        """Choices per prompt in the answer."""
        return self.n or 1

    @property
    def drawn(self) -> int:
        """Choices per prompt that are generated."""
        return self.shown if self.max_tokens == 0 else self.best_of or self.shown

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < self.shown:
            raise InvalidRequest(f"'best_of' is {self.best_of}; it must be at least 'n'.", param="best_of")
        if self.stream and self.drawn > self.shown:
            raise InvalidRequest("The best of several choices cannot be streamed.", param="best_of")
        if self.stream and self.max_tokens == 0:
            raise InvalidRequest("An answer without tokens cannot be streamed.", param="max_tokens")
        if self.drawn * len(self.prompt) > MAX_CHOICES:
            raise InvalidRequest(
                f"{len(self.prompt)} prompts with {self.drawn} choices each make more than {MAX_CHOICES}.",
                param="prompt",
            )
        if self.suffix and not isinstance(self.prompt[0], str):
            raise InvalidRequest("A prompt with a suffix must be text.", param="suffix")
        if self.suffix and self.echo and self.logprobs is not None:
            raise InvalidRequest("'echo' with 'logprobs' is not possible where there is a suffix.", param="suffix")
        return self


class CompletionEndpoint:
    """Completions of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        service = self._service
        body = await read_body(request, service.settings.max_body_bytes)
        asked, prompts = await service.prepare(body, self._read)
        choices = self._choices(asked, prompts, context_of(request.scope).unique_id)
        shape = CompletionShape(
            service.model.tokenizer, prompts if asked.echo else None, shows_logprobs=asked.logprobs is not None
        )
        select: Select | None = None
        if asked.max_tokens == 0:
            select = prompt_only
        elif asked.drawn > asked.shown:
            select = partial(best_of, shown=asked.shown)
        writer = ChoicesWriter(service, request, shape, asked.model, choices, asked.include_usage, select)
        return await Responder(service, request, writer).respond(choices, stream=bool(asked.stream))

    def _read(self, body: bytes) -> tuple[CompletionRequest, list[EncodedPrompt]]:
        """The request, validated, and its prompts."""
        fields = json_object(body)
        asked = parse(CompletionRequest, fields)
        self._service.check_model(asked.model)
        with metrics.tokenizing():
            return asked, self._encode(asked)

    def _encode(self, asked: CompletionRequest) -> list[EncodedPrompt]:
        model = self._service.model
        if isinstance(asked.prompt[0], str):
            return encode_texts(model, asked.prompt, asked.suffix or "")
        return check_tokens(model, asked.prompt, echo=bool(asked.echo))

    def _choices(self, asked: CompletionRequest, prompts: Sequence[EncodedPrompt], request_id: str) -> list[Choice]:
        ranked = 0 if asked.drawn > asked.shown else None  # the best of several is found by its logprobs
        top_logprobs = asked.logprobs if asked.logprobs is not None else ranked
        sampling = sampling_of(
            asked,
            self._service.model,
            top_logprobs=top_logprobs,
            prompt_logprobs=asked.logprobs if asked.echo else None,
            ends=prompts[0].ends,
        )
        wanted = _DEFAULT_MAX_TOKENS if asked.max_tokens is None else max(asked.max_tokens, 1)
        choices: list[Choice] = []
        for number, prompt in enumerate(prompts):
            max_tokens = min(wanted, self._service.room(prompt.token_ids, "prompt"))
            for _ in range(asked.drawn):
                index = len(choices)
                choices.append(
                    Choice(
                        request_id=f"{request_id}-{index}" if index else request_id,
                        index=index,
                        prompt=number,
                        prompt_token_ids=prompt.token_ids,
                        sampling=sampling.build(index, max_tokens),
                        structure_field=sampling.structure_field,
                        stops=asked.stop,
                        continues_text=True,
                    )
                )
        return choices
