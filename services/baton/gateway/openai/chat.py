"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidRequest
from baton.core.sampling import MAX_TOP_LOGPROBS
from baton.gateway import metrics
from baton.gateway.generation import Choice
from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.context import context_of
from baton.gateway.openai.fields import parse, refuse_unsupported
from baton.gateway.openai.logprobs import chat_logprobs
from baton.gateway.openai.messages import Message
from baton.gateway.openai.respond import Responder
from baton.gateway.openai.sampling import GenerationFields, SamplingBuilder
from baton.gateway.output import OutputToken, Piece
from baton.gateway.service import Service
from baton.gateway.tokenizer import Tokenizer

# Fields of OpenAI's that change the answer and are not supported, and their values that ask for nothing.
_UNSUPPORTED: dict[str, Sequence[Any]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class ChatRequest(GenerationFields):
    """Beyond OpenAI's fields: `chat_template_kwargs`, variables for the chat template."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
        return self

    def template_variables(self) -> dict[str, Any]:
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables["reasoning_effort"] = self.reasoning_effort
        return variables


class ChatEndpoint:
    """Chat completions of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        body = await read_body(request, self._service.settings.max_body_bytes)
        asked, prompt = await self._service.prepare(body, self._read)
        choices = self._choices(asked, prompt, context_of(request.scope).unique_id)
        responder = Responder(self._service, request, ChatShape(self._service.model.tokenizer), asked.model)
        return await responder.respond(choices, stream=bool(asked.stream), include_usage=asked.include_usage)

    def _read(self, body: bytes) -> tuple[ChatRequest, list[int]]:
        """The request, validated, and its prompt's token ids."""
        fields = json_object(body)
        refuse_unsupported(fields, _UNSUPPORTED)
        asked = parse(ChatRequest, fields)
        self._service.check_model(asked.model)
        template = self._service.model.template
        if template is None:
            raise InvalidRequest(
                "This model has no chat template, so it takes no messages; use /v1/completions.", param="messages"
            )
        with metrics.tokenizing():
            text = template.render([message.for_template() for message in asked.messages], asked.template_variables())
            [prompt] = self._service.model.tokenizer.encode([text], add_special_tokens=False)
        return asked, prompt

    def _choices(self, asked: ChatRequest, prompt: list[int], request_id: str) -> list[Choice]:
        room = self._service.room(prompt, "messages")
        max_tokens = min(asked.max_completion_tokens or asked.max_tokens or room, room)
        top_logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        sampling = SamplingBuilder(asked, self._service.model, top_logprobs=top_logprobs)
        count = asked.n or 1
        return [
            Choice(
                request_id=request_id if count == 1 else f"{request_id}-{index}",
                index=index,
                prompt=0,
                prompt_token_ids=prompt,
                sampling=sampling.build(index, max_tokens),
                stops=asked.stop,
            )
            for index in range(count)
        ]


class ChatShape:
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def whole(self, choice: Choice, text: str, tokens: Sequence[OutputToken], finish: str) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(choice, tokens),
            "finish_reason": finish,
        }

    def opening(self, choice: Choice) -> dict[str, Any]:
        return _chunk(choice, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        return _chunk(choice, {"content": piece.text}, logprobs=self._logprobs(choice, piece.tokens))

    def closing(self, choice: Choice, finish: str) -> dict[str, Any]:
        return _chunk(choice, {}, finish=finish)

    def _logprobs(self, choice: Choice, tokens: Sequence[OutputToken]) -> dict[str, Any] | None:
        return None if choice.sampling.top_logprobs is None else chat_logprobs(self._tokenizer, tokens)


def _chunk(
    choice: Choice, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
