"""`POST /v1/rerank` and `POST /v1/score`, which OpenAI does not have: as Jina, Cohere, vLLM and SGLang have them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from pydantic import Field, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import Response

from baton.client import PoolingParams, Task
from baton.core.errors import InvalidRequest
from baton.core.pooling import MAX_LABEL_TOKENS
from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.context import context_of
from baton.gateway.http.fields import Body, parse
from baton.gateway.openai.embeddings import Truncation
from baton.gateway.openai.prompts import as_prompts
from baton.gateway.pooling.ranking import Ranking, RankInputs
from baton.gateway.pooling.run import pool
from baton.gateway.pooling.texts import MAX_INPUTS, PoolingInput, TextReader
from baton.gateway.service import Service

_LABELS = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_LABEL_TOKENS)]


class RerankRequest(Body):
    """`top_n`: how many results, 0 or none = all. `instruction`: what the query is about, for models that take one."""

    model: str
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool | None = None
    truncate_prompt_tokens: Truncation = None
    instruction: str | None = None

    @field_validator("documents", mode="before")
    @classmethod
    def _documents(cls, value: Any) -> Any:
        """Texts, or objects with a text, as Cohere and Jina take them."""
        if not isinstance(value, list):
            return value
        return [one["text"] if isinstance(one, dict) and "text" in one else one for one in value]


class ScoreRequest(Body):
    """Pairs of `text_1` and `text_2` (vLLM): one with all, or each with its own; or `query` and `items` (SGLang), of
    which the probabilities of `label_token_ids` are asked for as what comes next."""

    model: str
    text_1: list[str] = Field(default_factory=list)
    text_2: list[str] = Field(default_factory=list)
    truncate_prompt_tokens: Truncation = None
    instruction: str | None = None
    query: str | list[int] | None = None
    items: list[Any] = Field(default_factory=list)
    label_token_ids: _LABELS | None = None
    apply_softmax: bool | None = None
    item_first: bool | None = None

    @field_validator("text_1", "text_2", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("items", mode="before")
    @classmethod
    def _items(cls, value: Any) -> Any:
        return as_prompts(value)

    @model_validator(mode="after")
    def _one_way(self) -> ScoreRequest:
        if self.label_token_ids is None:
            if not self.text_1 or not self.text_2:
                raise InvalidRequest("'text_1' and 'text_2' are needed, or 'label_token_ids'.", param="text_1")
            if len(self.text_1) not in (1, len(self.text_2)):
                message = f"'text_1' has {len(self.text_1)} texts and 'text_2' {len(self.text_2)}: one, or as many."
                raise InvalidRequest(message, param="text_1")
            if len(self.text_2) > MAX_INPUTS:
                raise InvalidRequest(f"'text_2' has more than {MAX_INPUTS} texts.", param="text_2")
        elif self.query is None or not self.items or len(self.items) > MAX_INPUTS:
            raise InvalidRequest(f"'query' is needed, and 1 to {MAX_INPUTS} 'items'.", param="items")
        elif any(isinstance(item, str) is not isinstance(self.query, str) for item in self.items):
            raise InvalidRequest("'query' and 'items' are either all texts or all token ids.", param="items")
        return self

    def pairs(self) -> list[tuple[str, str]]:
        first = itertools.repeat(self.text_1[0]) if len(self.text_1) == 1 else self.text_1
        return list(zip(first, self.text_2, strict=False))

    def joined(self) -> list[Any]:
        """The query with each of the items, as one text or list of token ids."""
        return [item + self.query if self.item_first else self.query + item for item in self.items]


class RankingEndpoint:
    """Scores of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ranking = Ranking(service)

    async def rerank(self, request: Request) -> Response:
        body = await read_body(request, self._service.settings.max_body_bytes)
        asked, read = await self._service.prepare(body, self._read_rerank)
        scores = await self._ranking.score(request, read)
        best = sorted(enumerate(scores.values), key=lambda one: -one[1])[: asked.top_n or None]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": score} for index, score in best]
        if asked.return_documents is not False:
            for result in results:
                result["document"] = {"text": asked.documents[result["index"]]}
        id = f"rerank-{context_of(request.scope).unique_id}"
        return _json({"id": id, "model": asked.model, "usage": scores.usage, "results": results})

    async def score(self, request: Request) -> Response:
        body = await read_body(request, self._service.settings.max_body_bytes)
        asked, read = await self._service.prepare(body, self._read_score)
        if not isinstance(read, RankInputs):
            return await self._label_scores(request, asked, read)
        scores = await self._ranking.score(request, read)
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores.values)]
        return _json({
            "id": f"score-{context_of(request.scope).unique_id}", "object": "list", "created": int(time.time()),
            "model": asked.model, "data": data, "usage": scores.usage,
        })  # fmt: skip

    async def _label_scores(self, request: Request, asked: ScoreRequest, inputs: Sequence[PoolingInput]) -> Response:
        params = PoolingParams(Task.SCORE, label_token_ids=tuple(asked.label_token_ids or ()))
        vectors = await pool(self._service, request, inputs, params)
        scores = [_probabilities(logprobs, among=bool(asked.apply_softmax)) for logprobs in vectors.values]
        return _json({"object": "scoring", "model": asked.model, "scores": scores, "usage": vectors.usage})

    def _read_rerank(self, body: bytes) -> tuple[RerankRequest, RankInputs]:
        asked = parse(RerankRequest, json_object(body))
        self._service.check_model(asked.model)
        pairs = [(asked.query, document) for document in asked.documents]
        return asked, self._ranking.read(pairs, "documents", asked.truncate_prompt_tokens, asked.instruction)

    def _read_score(self, body: bytes) -> tuple[ScoreRequest, RankInputs | list[PoolingInput]]:
        asked = parse(ScoreRequest, json_object(body))
        self._service.check_model(asked.model)
        if asked.label_token_ids is None:
            pairs = asked.pairs()
            return asked, self._ranking.read(pairs, "text_2", asked.truncate_prompt_tokens, asked.instruction)
        reader = TextReader(self._service, "items", asked.truncate_prompt_tokens, ends=False)
        return asked, reader.read_all(asked.joined())


def _probabilities(logprobs: Sequence[float], *, among: bool) -> list[float]:
    """Of each label among all tokens, or `among` the labels only."""
    most = max(logprobs) if among else 0.0
    weights = [math.exp(value - most) for value in logprobs]
    return [weight / sum(weights) for weight in weights] if among else weights


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
