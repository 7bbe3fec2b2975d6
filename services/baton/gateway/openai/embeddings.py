"""`POST /v1/embeddings`: texts or token ids in, vectors out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response

from baton.client import PoolingParams, Task
from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.fields import Body, parse
from baton.gateway.openai.prompts import as_prompts
from baton.gateway.pooling.run import pool
from baton.gateway.pooling.texts import MAX_INPUTS, PoolingInput, TextReader
from baton.gateway.service import Service

Encoding = Literal["float", "base64"]
Truncation = Annotated[int, Field(ge=-1)] | None


class InputRequest(Body):
    """Texts or token ids. `truncate_prompt_tokens`, as in vLLM: longest input, to which others are cut; -1 = what the
    model takes."""

    model: str
    input: list[Any]
    truncate_prompt_tokens: Truncation = None

    @field_validator("input", mode="before")
    @classmethod
    def _inputs(cls, value: Any) -> list[Any]:
        inputs = as_prompts(value)
        if len(inputs) > MAX_INPUTS:
            raise ValueError(f"more than {MAX_INPUTS} inputs")
        return inputs


class EmbeddingRequest(InputRequest):
    encoding_format: Encoding | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    user: str | None = None


class EmbeddingsEndpoint:
    """Embeddings of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        body = await read_body(request, self._service.settings.max_body_bytes)
        asked, inputs = await self._service.prepare(body, self._read)
        params = PoolingParams(Task.EMBED, dimensions=asked.dimensions or 0)
        vectors = await pool(self._service, request, inputs, params)
        data = [
            {"object": "embedding", "index": index, "embedding": encoded(vector, asked.encoding_format)}
            for index, vector in enumerate(vectors.values)
        ]
        answer = {"object": "list", "data": data, "model": asked.model, "usage": vectors.usage}
        return Response(orjson.dumps(answer), media_type="application/json")

    def _read(self, body: bytes) -> tuple[EmbeddingRequest, list[PoolingInput]]:
        asked = parse(EmbeddingRequest, json_object(body))
        self._service.check_model(asked.model)
        return asked, TextReader(self._service, "input", asked.truncate_prompt_tokens).read_all(asked.input)


def encoded(vector: Sequence[float], encoding: Encoding | None) -> list[float] | str:
    """Numbers, or little-endian float32 in base64."""
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
    return list(vector)
