"""What a model is asked for when it is not text: the tasks, and the parameters of a pooling request.

The answer of a pooling request is one vector of float32:

    embed     what the text means, as the checkpoint says to read it off
    classify  a probability per label of the checkpoint's classification head; of a reranker the relevance
    score     the logprob of each of `label_token_ids` as the token that would come next
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from baton.core.errors import InvalidRequest

MAX_LABEL_TOKENS = 128


class Task(enum.StrEnum):
    """What a request asks of a model. A worker tells which of them its model can do."""

    GENERATE = "generate"
    EMBED = "embed"
    CLASSIFY = "classify"
    SCORE = "score"


POOLING_TASKS = frozenset({Task.EMBED, Task.CLASSIFY, Task.SCORE})


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """Parameters of one pooling request.

    `dimensions`: of an embedding, only so many of its leading ones (Matryoshka), 0 = all. `raw`: an embedding that is
    not scaled to unit length, or the classification head's logits. `second_text_at`: where the second of a pair of
    texts begins among the tokens; 0 = there is one text. `label_token_ids` belong to task score.
    Raises InvalidRequest, naming the field, when a value is out of range or has no meaning for the task.
    """

    task: Task
    dimensions: int = 0
    raw: bool = False
    second_text_at: int = 0
    label_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in POOLING_TASKS:
            raise InvalidRequest(f"{self.task} is no pooling task; those are embed, classify and score", param="task")
        if self.dimensions < 0 or (self.dimensions and self.task is not Task.EMBED):
            raise InvalidRequest("dimensions is a positive number, of embeddings only", param="dimensions")
        if self.second_text_at < 0:
            raise InvalidRequest("second_text_at must not be negative", param="second_text_at")
        if bool(self.label_token_ids) is not (self.task is Task.SCORE):
            raise InvalidRequest("label_token_ids are needed by task score, and by no other", param="label_token_ids")
        if len(self.label_token_ids) > MAX_LABEL_TOKENS:
            raise InvalidRequest(f"label_token_ids are more than {MAX_LABEL_TOKENS}", param="label_token_ids")


def check_task(task: Task, served: frozenset[Task], model: str) -> None:
    """Raises InvalidRequest when a model that serves `served` is asked for something else."""
    if task not in served:
        names = ", ".join(sorted(served))
        raise InvalidRequest(f"{model} does not do task {task}; it does: {names}", param="model")
