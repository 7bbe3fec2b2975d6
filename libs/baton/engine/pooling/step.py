"""Pooling requests in a step of the engine: which of its hidden states are whose, and what comes of them.

Pooling requests share steps with generation. Where there are any, the step's hidden states are computed first: those of
pooling rows are gathered here, and logits are made of the others only. As in `drawing`: prepared on the host, `launch`
waits for nothing, `read` comes when the step has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch

from baton.core.errors import InternalError
from baton.engine.batch import StepBatch
from baton.engine.plan import PlannedRow
from baton.engine.pooling.pooler import Pooled, Pooler
from baton.engine.transfer import indices, to_host

Answers: TypeAlias = "dict[int, list[float] | InternalError]"  # by row of the plan; an error for one that is not finite


class PoolingModel(Protocol):
    """A runner (baton.engine.batch) whose hidden states can be had. `forward` is `logits` of `hidden`."""

    @property
    def pooler(self) -> Pooler: ...

    def hidden(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Write K and V of the batch's tokens, and return final hidden states [L, E] of `batch.logit_rows`."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [L, V] of hidden states [L, E]."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Hidden states `start:end` are of the plan's row `row`, for tokens from `position` on."""

    row: int
    pooled: Pooled
    start: int
    end: int
    position: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Pools:
    """The pooling rows of a step. `kept`: the places of hidden states that logits are wanted of."""

    parts: list[_Part] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[PlannedRow]) -> Pools | None:
        """None: the step has no pooling rows."""
        if all(row.request.pooled is None for row in rows):
            return None
        pools = cls()
        end = 0
        for index, row in enumerate(rows):
            start, end = end, end + row.end - row.logits_start
            if row.request.pooled is None:
                pools.kept.extend(range(start, end))
            else:
                pools.parts.append(_Part(index, row.request.pooled, start, end, row.start, row.completes))
        return pools

    def launch(self, hidden: torch.Tensor, pooler: Pooler) -> LaunchedPools:
        """Take the step's hidden states [L, E], and answer the requests whose text ends with it."""
        for part in self.parts:
            part.pooled.take(hidden[part.start : part.end], part.position)
        ended = [part for part in self.parts if part.is_last]
        answers = pooler.answer([part.pooled.state for part in ended], [part.pooled.params for part in ended])
        return LaunchedPools({part.row: to_host(answer) for part, answer in zip(ended, answers, strict=True)})

    def others(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that logits are wanted of."""
        return hidden[indices(self.kept, hidden.device)]


@dataclass(frozen=True, slots=True)
class LaunchedPools:
    """Answers by row of the plan, on the host when the step has ended."""

    answers: dict[int, torch.Tensor]

    def read(self) -> Answers:
        return {row: finite(answer) for row, answer in self.answers.items()}


def finite(answer: torch.Tensor) -> list[float] | InternalError:
    """The values of an answer on the host; an error when they are not all finite."""
    if not bool(answer.isfinite().all()):
        return InternalError("the model's answer is not finite: its hidden states overflowed")
    values: list[float] = answer.tolist()
    return values
