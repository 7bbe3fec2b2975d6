"""`POST /v1/completions`: text or token ids in, their continuation out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidRequest
from baton.core.sampling import MAX_TOP_LOGPROBS
from baton.gateway import metrics
from baton.gateway.generation import Choice
from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.context import context_of
from baton.gateway.http.fields import parse, refuse_unsupported
from baton.gateway.openai.logprobs import CompletionLogprobs
from baton.gateway.openai.prompts import as_prompts
from baton.gateway.openai.sampling import MAX_CHOICES, GenerationFields, sampling_of
from baton.gateway.openai.writer import ChoicesWriter
from baton.gateway.output import Piece
from baton.gateway.respond import Answer, Responder
from baton.gateway.service import Service
from baton.gateway.tokenizer import Tokenizer

_UNSUPPORTED: dict[str, Sequence[Any]] = {"suffix": ("",)}
_DEFAULT_MAX_TOKENS = 16  # OpenAI's documented default for this endpoint


class CompletionRequest(GenerationFields):
    prompt: list[Any]  # texts, or lists of token ids; validated as a whole, since OpenAI's four forms overlap
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> list[Any]:
        return as_prompts(value)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    text: str  # what `echo` shows; empty for token ids that are not echoed
    token_ids: list[int]


class CompletionEndpoint:
    """Completions of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        body = await read_body(request, self._service.settings.max_body_bytes)
        asked, prompts = await self._service.prepare(body, self._read)
        choices = self._choices(asked, prompts, context_of(request.scope).unique_id)
        shape = CompletionShape(self._service.model.tokenizer, prompts if asked.echo else None)
        writer = ChoicesWriter(self._service, request, shape, asked.model, choices, asked.include_usage)
        return await Responder(self._service, request, writer).respond(choices, stream=bool(asked.stream))

    def _read(self, body: bytes) -> tuple[CompletionRequest, list[EncodedPrompt]]:
        """The request, validated, and its prompts."""
        fields = json_object(body)
        refuse_unsupported(fields, _UNSUPPORTED)
        asked = parse(CompletionRequest, fields)
        _check(asked)
        self._service.check_model(asked.model)
        with metrics.tokenizing():
            return asked, self._encode(asked)

    def _encode(self, asked: CompletionRequest) -> list[EncodedPrompt]:
        model = self._service.model
        if isinstance(asked.prompt[0], str):
            encoded = model.tokenizer.encode(asked.prompt, add_special_tokens=True)
            return [EncodedPrompt(text, token_ids) for text, token_ids in zip(asked.prompt, encoded, strict=True)]
        for token in itertools.chain.from_iterable(asked.prompt):
            if not 0 <= token < model.vocab_size:
                raise InvalidRequest(
                    f"The prompt names token {token}; ids are from 0 to {model.vocab_size - 1}.", param="prompt"
                )
        return [EncodedPrompt(model.tokenizer.decode(ids) if asked.echo else "", ids) for ids in asked.prompt]

    def _choices(self, asked: CompletionRequest, prompts: Sequence[EncodedPrompt], request_id: str) -> list[Choice]:
        prompt_logprobs = asked.logprobs if asked.echo else None
        sampling = sampling_of(asked, self._service.model, top_logprobs=asked.logprobs, prompt_logprobs=prompt_logprobs)
        choices: list[Choice] = []
        for number, prompt in enumerate(prompts):
            max_tokens = min(asked.max_tokens or _DEFAULT_MAX_TOKENS, self._service.room(prompt.token_ids, "prompt"))
            for _ in range(asked.n or 1):
                index = len(choices)
                choices.append(
                    Choice(
                        request_id=f"{request_id}-{index}" if index else request_id,
                        index=index,
                        prompt=number,
                        prompt_token_ids=prompt.token_ids,
                        sampling=sampling.build(index, max_tokens),
                        stops=asked.stop,
                        continues_text=True,
                    )
                )
        return choices


def _check(asked: CompletionRequest) -> None:
    count = asked.n or 1
    if asked.best_of is not None and asked.best_of != count:
        raise InvalidRequest("'best_of' other than 'n' is not supported by this server.", param="best_of")
    if count * len(asked.prompt) > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(asked.prompt)} prompts with n = {count} make more than {MAX_CHOICES} choices.", param="prompt"
        )


class CompletionShape:
    """`echoed`: the prompts, when they are to stand before their continuations."""

    object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, tokenizer: Tokenizer, echoed: Sequence[EncodedPrompt] | None) -> None:
        self._tokenizer = tokenizer
        self._echoed = echoed

    def whole(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choice
        logprobs = self._new_logprobs(choice)
        if logprobs is not None:
            self._add_prompt(choice, logprobs)
            logprobs.add(answer.tokens)
        return _entry(choice, self._prefix(choice) + answer.text, logprobs, choice.finish)

    def opening(self, choice: Choice, piece: Piece) -> dict[str, Any] | None:
        if self._echoed is None:
            return None
        logprobs = self._new_logprobs(choice)
        if logprobs is not None:
            self._add_prompt(choice, logprobs)
        return _entry(choice, self._prefix(choice), logprobs)

    def deltas(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        if not piece.text and not piece.tokens:
            return []
        logprobs = self._new_logprobs(choice)
        if logprobs is not None:
            logprobs.add(piece.tokens)
        return [_entry(choice, piece.text, logprobs)]

    def closing(self, choice: Choice, finish: str) -> dict[str, Any]:
        return _entry(choice, "", None, finish)

    def _prefix(self, choice: Choice) -> str:
        return self._echoed[choice.prompt].text if self._echoed is not None else ""

    def _new_logprobs(self, choice: Choice) -> CompletionLogprobs | None:
        if choice.sampling.top_logprobs is None:
            return None
        return CompletionLogprobs(self._tokenizer, base=len(self._prefix(choice)))

    def _add_prompt(self, choice: Choice, logprobs: CompletionLogprobs) -> None:
        if self._echoed is not None:
            logprobs.add_prompt(choice.prompt_token_ids, choice.prompt_logprobs)


def _entry(choice: Choice, text: str, logprobs: CompletionLogprobs | None, finish: str | None = None) -> dict[str, Any]:
    body = logprobs.body() if logprobs is not None else None
    return {"index": choice.index, "text": text, "logprobs": body, "finish_reason": finish}
