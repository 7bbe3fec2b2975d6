"""From running choices to OpenAI's responses, whole or streamed. A `Shape` tells the endpoints apart."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response

from baton.gateway.generation import Choice, ChoiceStream
from baton.gateway.http.context import RequestContext, context_of
from baton.gateway.http.disconnect import unless_disconnected
from baton.gateway.http.sse import KEEP_ALIVE, EventStream
from baton.gateway.openai.errors import error_event
from baton.gateway.output import OutputToken, Piece
from baton.gateway.service import Service


class Shape(Protocol):
    """One endpoint's objects. Methods return entries of `choices`."""

    object: str
    chunk_object: str
    id_prefix: str

    def whole(self, choice: Choice, text: str, tokens: Sequence[OutputToken], finish: str) -> dict[str, Any]: ...

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """Sent before the choice's first text, if not None."""

    def delta(self, choice: Choice, piece: Piece) -> dict[str, Any]: ...

    def closing(self, choice: Choice, finish: str) -> dict[str, Any]: ...


class Responder:
    """Answers one request. `model`: the name that the client asked for."""

    def __init__(self, service: Service, request: Request, shape: Shape, model: str) -> None:
        self._service = service
        self._request = request
        self._shape = shape
        self._context: RequestContext = context_of(request.scope)
        self._envelope = {
            "id": shape.id_prefix + self._context.unique_id.removeprefix("req-"),
            "object": shape.object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": service.catalog.fingerprint,
        }

    async def respond(self, choices: Sequence[Choice], *, stream: bool, include_usage: bool) -> Response:
        """The response to `choices`. Raises BatonError; for a stream, that happens when the response is sent."""
        if not stream:
            return await unless_disconnected(self._request.receive, self._whole(choices))
        timeout_s = self._service.settings.slow_reader_timeout_s
        return EventStream(self._events(choices, include_usage), error_event, timeout_s)

    async def _whole(self, choices: Sequence[Choice]) -> Response:
        texts: dict[int, list[str]] = {choice.index: [] for choice in choices}
        tokens: dict[int, list[OutputToken]] = {choice.index: [] for choice in choices}
        finish: dict[int, str] = {}
        async with self._running(choices) as running:
            while not running.done:
                for choice, piece in await running.next():
                    texts[choice.index].append(piece.text)
                    tokens[choice.index] += piece.tokens
                    if piece.finish:
                        finish[choice.index] = piece.finish
        entries = [
            self._shape.whole(choice, "".join(texts[choice.index]), tokens[choice.index], finish[choice.index])
            for choice in choices
        ]
        body = {**self._envelope, "choices": entries, "usage": _usage(choices)}
        return Response(orjson.dumps(body), media_type="application/json")

    async def _events(self, choices: Sequence[Choice], include_usage: bool) -> AsyncGenerator[bytes]:
        opened: set[int] = set()
        envelope = {**self._envelope, "object": self._shape.chunk_object}
        if include_usage:
            envelope["usage"] = None
        async with self._running(choices) as running:
            while not running.done:
                ready = await running.next(self._service.settings.keep_alive_s)
                chunks = [chunk for choice, piece in ready for chunk in self._chunks(choice, piece, opened)]
                yield b"".join(_event({**envelope, "choices": [chunk]}) for chunk in chunks) or KEEP_ALIVE
        last = _event({**envelope, "choices": [], "usage": _usage(choices)}) if include_usage else b""
        yield last + b"data: [DONE]\n\n"

    def _chunks(self, choice: Choice, piece: Piece, opened: set[int]) -> list[dict[str, Any]]:
        chunks = []
        if choice.index not in opened:
            opened.add(choice.index)
            if (opening := self._shape.opening(choice)) is not None:
                chunks.append(opening)
        if piece.text or piece.tokens:
            chunks.append(self._shape.delta(choice, piece))
        if piece.finish:
            chunks.append(self._shape.closing(choice, piece.finish))
        return chunks

    @asynccontextmanager
    async def _running(self, choices: Sequence[Choice]) -> AsyncIterator[ChoiceStream]:
        """The choices, running; whatever ends them, the log tells how far they came."""
        try:
            async with ChoiceStream(self._service.generator, choices, self._context.started) as running:
                yield running
        finally:
            usage = _usage(choices)
            self._context.facts |= {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
            self._context.facts["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]


def _usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """Prompts count once, however many choices they have; cached tokens are those that the first choice found."""
    firsts = {choice.prompt: choice for choice in reversed(choices)}.values()
    prompt_tokens = sum(len(choice.prompt_token_ids) for choice in firsts)
    completion_tokens = sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in firsts)},
    }


def _event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
