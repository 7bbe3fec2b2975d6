"""`POST /api/embed`, and `POST /api/embeddings`, which came before it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import orjson
from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response

from baton.client import PoolingParams, Task
from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.context import context_of
from baton.gateway.http.fields import parse
from baton.gateway.ollama.models import served_name
from baton.gateway.ollama.request import ModelRequest
from baton.gateway.pooling.run import Vectors, pool
from baton.gateway.pooling.texts import MAX_INPUTS, PoolingInput, TextReader
from baton.gateway.service import Service


class EmbedRequest(ModelRequest):
    """`truncate`: cut what is too long (it is so unless it is false). Without a text nothing is embedded."""

    input: Annotated[list[str], Field(max_length=MAX_INPUTS)] = Field(default_factory=list)
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [value] if value else []
        return [] if value is None else value


class EmbeddingsRequest(ModelRequest):
    """One text, and one vector."""

    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None


class EmbedEndpoint:
    """Embeddings of one service, in Ollama's words."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embed(self, request: Request) -> Response:
        body = await read_body(request, self._service.settings.max_body_bytes)
        asked, inputs = await self._service.prepare(body, self._read)
        vectors = await self._pool(request, inputs, asked.dimensions or 0)
        duration_ns = int((time.monotonic() - context_of(request.scope).started) * 1e9)
        return _json({
            "model": asked.model, "embeddings": vectors.values, "total_duration": duration_ns, "load_duration": 0,
            "prompt_eval_count": vectors.prompt_tokens,
        })  # fmt: skip

    async def embeddings(self, request: Request) -> Response:
        body = await read_body(request, self._service.settings.max_body_bytes)
        inputs = await self._service.prepare(body, self._read_one)
        vectors = await self._pool(request, inputs, 0)
        return _json({"embedding": vectors.values[0] if vectors.values else []})

    async def _pool(self, request: Request, inputs: list[PoolingInput], dimensions: int) -> Vectors:
        return await pool(self._service, request, inputs, PoolingParams(Task.EMBED, dimensions))

    def _read(self, body: bytes) -> tuple[EmbedRequest, list[PoolingInput]]:
        asked = parse(EmbedRequest, json_object(body))
        served_name(self._service, asked.model)
        return asked, TextReader(self._service, "input", None if asked.truncate is False else -1).read_all(asked.input)

    def _read_one(self, body: bytes) -> list[PoolingInput]:
        asked = parse(EmbeddingsRequest, json_object(body))
        served_name(self._service, asked.model)
        return TextReader(self._service, "prompt", -1).read_all([asked.prompt] if asked.prompt else [])


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
