"""From hidden states to the answers of pooling requests. Knows neither rows nor steps.

    R  requests that are answered together    E  hidden size    N  labels    D  dimensions of an embedding

All of it in float32, whatever the model's dtype.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from baton.core.errors import InvalidRequest
from baton.core.pooling import PoolingParams, Task, check_task
from baton.engine.model.files import tensor_entries
from baton.engine.model.weights import read_tensors
from baton.engine.pooling.spec import Activation, Dense, EmbeddingSpec, Pooling

Project = Callable[[torch.Tensor], torch.Tensor]  # float32 [R, in] -> [R, out]


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """`logits` [R, N] of pooled states [R, E]."""

    labels: int
    pooling: Pooling
    activation: Activation
    logits: Project


@dataclass(frozen=True, slots=True)
class Pooler:
    """Answers of one model. `tasks` it can do, generation among them. `vocabulary`: states [R, E] -> logits [R, V]."""

    tasks: frozenset[Task]
    vocab_size: int
    hidden_size: int
    embedding: EmbeddingSpec
    dense: tuple[Project, ...] = ()
    classifier: ClassifierHead | None = None
    vocabulary: Project | None = None

    @property
    def embedding_size(self) -> int:
        return self.embedding.dense[-1].fan_out if self.embedding.dense else self.hidden_size

    def without_tokens(self) -> Pooler:
        """That of the same model where it draws no tokens."""
        return replace(self, tasks=self.tasks - {Task.GENERATE, Task.SCORE}, vocabulary=None)

    def check(self, params: PoolingParams) -> None:
        """Raises InvalidRequest when this model cannot answer the request."""
        check_task(params.task, self.tasks, "this model")
        allowed = self.embedding.dimensions
        if params.dimensions > self.embedding_size:
            message = f"dimensions is {params.dimensions}; this model's embeddings have {self.embedding_size}"
            raise InvalidRequest(message, param="dimensions")
        if params.dimensions and allowed and params.dimensions not in (*allowed, self.embedding_size):
            named = ", ".join(map(str, allowed))
            message = f"dimensions is {params.dimensions}; this model was trained for {named}"
            raise InvalidRequest(message, param="dimensions")
        if any(not 0 <= token < self.vocab_size for token in params.label_token_ids):
            message = f"a label token id is not in the vocabulary: ids are 0 to {self.vocab_size - 1}"
            raise InvalidRequest(message, param="label_token_ids")

    def pooling(self, params: PoolingParams) -> Pooling:
        """Which tokens' states the request needs."""
        if params.task is Task.EMBED:
            return self.embedding.pooling
        if params.task is Task.CLASSIFY and self.classifier is not None:
            return self.classifier.pooling
        return Pooling.LAST

    def answer(self, pooled: Sequence[torch.Tensor], params: Sequence[PoolingParams]) -> list[torch.Tensor]:
        """One vector for each pooled state [E], in their order."""
        groups: dict[PoolingParams, list[int]] = defaultdict(list)
        for index, one in enumerate(params):
            groups[replace(one, second_text_at=0)].append(index)
        answers: list[torch.Tensor] = [torch.empty(0)] * len(pooled)
        for one, indices in groups.items():
            found_RN = self._answer(torch.stack([pooled[index] for index in indices]), one)
            for index, vector in zip(indices, found_RN, strict=True):
                answers[index] = vector
        return answers

    def _answer(self, pooled_RE: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        if params.task is Task.EMBED:
            return self._embedding(pooled_RE, params)
        if params.task is Task.SCORE:
            assert self.vocabulary is not None, "`check` was called"
            logprobs_RV = self.vocabulary(pooled_RE).float().log_softmax(-1)
            return logprobs_RV[:, list(params.label_token_ids)]
        assert self.classifier is not None, "`check` was called"
        logits_RN = self.classifier.logits(pooled_RE).float()
        if params.raw or self.classifier.activation is Activation.NONE:
            return logits_RN
        return logits_RN.sigmoid() if self.classifier.activation is Activation.SIGMOID else logits_RN.softmax(-1)

    def _embedding(self, pooled_RE: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        for project in self.dense:
            pooled_RE = project(pooled_RE)
        if params.dimensions:
            pooled_RE = pooled_RE[:, : params.dimensions]
        scales = self.embedding.normalize and not params.raw
        return F.normalize(pooled_RE, dim=-1) if scales else pooled_RE


def generating(vocab_size: int, hidden_size: int) -> Pooler:
    """That of a model of which nothing is known but that it draws tokens."""
    return Pooler(frozenset({Task.GENERATE}), vocab_size, hidden_size, EmbeddingSpec(Pooling.LAST))


class Pooled:
    """One request's pooled state, gathered from the pieces of its text in their order."""

    __slots__ = ("_count", "_state", "params", "pooling")

    def __init__(self, params: PoolingParams, pooling: Pooling) -> None:
        self.params = params
        self.pooling = pooling
        self._state: torch.Tensor | None = None
        self._count = 0

    @property
    def needs_all(self) -> bool:
        """Whether the states of all tokens are wanted, or the last one's only."""
        return self.pooling is not Pooling.LAST

    def take(self, states_NE: torch.Tensor, start: int) -> None:
        """The states of tokens `start` and following; of all of a text's, or of its last one. 0 begins anew."""
        if not start or self._state is None:
            self._state, self._count = None, 0
        if not len(states_NE):
            return
        if self.pooling is Pooling.MEAN:
            total = states_NE.float().sum(0)
            self._state = total if self._state is None else self._state + total
            self._count += len(states_NE)
        elif self.pooling is Pooling.LAST or self._state is None:
            self._state = states_NE[-1 if self.pooling is Pooling.LAST else 0].float()

    @property
    def state(self) -> torch.Tensor:
        """float32 [E], once the whole text was taken."""
        assert self._state is not None, "some states were taken"
        return self._state / self._count if self.pooling is Pooling.MEAN else self._state


def load_dense(modules: Sequence[Dense], device: torch.device) -> tuple[Project, ...]:
    """The projections of sentence-transformers' Dense modules. Raises CheckpointError."""
    return tuple(_load_dense(module, device) for module in modules)


def _load_dense(module: Dense, device: torch.device) -> Project:
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (module.fan_out, module.fan_in)}
    if module.bias:
        shapes["linear.bias"] = (module.fan_out,)
    found = read_tensors(tensor_entries(module.folder), shapes, torch.float32, device)

    def project(x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, found["linear.weight"], found.get("linear.bias"))
        return y.tanh() if module.tanh else y

    return project
