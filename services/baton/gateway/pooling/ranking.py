"""How well documents answer queries: by a cross-encoder, by the model's yes or no, or by the angle between embeddings.

The prompt of the yes-or-no kind is that of Qwen3-Reranker (Qwen, 2025, "Qwen3 Embedding"): documents of one query share
their beginning, so that it is computed once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from baton.client import PoolingParams, Task
from baton.core.errors import InvalidRequest
from baton.gateway.pooling.run import Vectors, pool
from baton.gateway.pooling.text_side import Ranker
from baton.gateway.pooling.texts import PoolingInput, TextReader
from baton.gateway.service import Service

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class Scores:
    """One score for each pair, in their order; greater is more relevant."""

    values: list[float]
    usage: dict[str, int]


@dataclass(frozen=True, slots=True)
class RankInputs:
    """What the model reads. By cosine: the inputs of texts, each once, and which two of them make each pair."""

    inputs: list[PoolingInput]
    pairs: list[tuple[int, int]]


class Ranking:
    """Scores pairs of texts by one service's model, in the way that its checkpoint or the setting names."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ranker = Ranker.YES_NO if service.settings.reranker == "qwen3" else service.model.pooling.ranker
        self._by_head = bool(service.model.pooling.labels)

    def read(
        self, pairs: Sequence[tuple[str, str]], param: str, truncate: int | None = None, instruction: str | None = None
    ) -> RankInputs:
        """Queries and documents as the model takes them. May take long. Raises InvalidRequest, PromptTooLong."""
        reader = TextReader(self._service, param, truncate)
        if self._ranker is Ranker.NONE:
            raise InvalidRequest(
                "This model does not rank: it is neither a reranker nor an embedding model. (The setting reranker = "
                "qwen3 says that it is one of the Qwen3-Reranker kind.)",
                param="model",
            )
        if instruction is not None and self._ranker is not Ranker.YES_NO:
            raise InvalidRequest("This model takes no instruction.", param="instruction")
        if self._ranker is Ranker.COSINE:
            return _texts(pairs, reader)
        numbers = [(index, index) for index in range(len(pairs))]
        if self._ranker is Ranker.PAIRS:
            return RankInputs(reader.read_pairs(pairs), numbers)
        inputs: list[PoolingInput] = []
        for query, document in pairs:
            if not query or not document:
                raise InvalidRequest(f"'{param}' has an empty text.", param=param)
            before = f"{_BEFORE}<Instruct>: {instruction or DEFAULT_INSTRUCTION}\n<Query>: {query}\n<Document>: "
            inputs += reader.read_wrapped(before, [document], _AFTER)
        return RankInputs(inputs, numbers)

    async def score(self, request: Request, read: RankInputs) -> Scores:
        """Raises BatonError."""
        vectors = await pool(self._service, request, read.inputs, self._params())
        return Scores([self._score(vectors, *pair) for pair in read.pairs], vectors.usage)

    def _params(self) -> PoolingParams:
        if self._ranker is Ranker.COSINE:
            return PoolingParams(Task.EMBED)
        if self._by_head:
            return PoolingParams(Task.CLASSIFY)
        return PoolingParams(Task.SCORE, label_token_ids=self._yes_no())

    def _yes_no(self) -> tuple[int, int]:
        yes, no = (self._service.model.tokenizer.id_of(word) for word in ("yes", "no"))
        if yes is None or no is None:
            raise InvalidRequest('This model has no tokens for "yes" and "no": it cannot rank so.', param="model")
        return yes, no

    def _score(self, vectors: Vectors, first: int, second: int) -> float:
        if self._ranker is Ranker.COSINE:
            return cosine(vectors.values[first], vectors.values[second])
        if self._by_head:
            return vectors.values[first][0]
        yes, no = vectors.values[first]
        return 1.0 / (1.0 + math.exp(min(no - yes, 700.0)))


def _texts(pairs: Sequence[tuple[str, str]], reader: TextReader) -> RankInputs:
    """Each text once, however many pairs it is in."""
    places: dict[str, int] = {}
    for text in (text for pair in pairs for text in pair):
        places.setdefault(text, len(places))
    return RankInputs(reader.read_all(list(places)), [(places[first], places[second]) for first, second in pairs])


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Of the angle between two vectors; 0 where one of them is 0."""
    norms = math.sqrt(_dot(one, one) * _dot(other, other))
    return _dot(one, other) / norms if norms else 0.0


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(map(operator.mul, one, other))
