"""The text side of pooling, read once from a checkpoint: labels, what goes around a text, how texts are ranked."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core import architecture
from baton.gateway.checkpoint_json import read_json
from baton.gateway.tokenizer import Tokenizer

_YES_NO = ["no", "yes"]
_YES_NO_NAME = "qwen3-reranker"  # whose files are those of a model that generates: only the name tells


class Ranker(enum.Enum):
    """How a model says how well a document answers a query."""

    NONE = "none"
    PAIRS = "pairs"  # a classification head with one label, over query and document together
    YES_NO = "yes_no"  # whether "yes" or "no" comes next after a question about them
    COSINE = "cosine"  # of the embeddings of both


@dataclass(frozen=True, slots=True)
class PoolingText:
    """`labels`: of a classification head; empty: there is none. `appended`: ends every text, where the tokenizer does
    not do it by itself. `draws_tokens`: it generates, too."""

    labels: tuple[str, ...] = ()
    appended: tuple[int, ...] = ()
    ranker: Ranker = Ranker.NONE
    draws_tokens: bool = True

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer, name: str) -> PoolingText:
        """`name`: the model's own. Raises CheckpointError for malformed files."""
        labels = tuple(architecture.labels(config)) if architecture.classifies(config) else ()
        return cls(
            labels=labels,
            appended=_appended(read_json(folder / "tokenizer_config.json"), tokenizer),
            ranker=_ranker(folder, config, labels, name),
            draws_tokens=not labels and not _only_embeds(config),
        )


def _only_embeds(config: Mapping[str, Any]) -> bool:
    return architecture.reads_both_ways(config) or architecture.lacks_head(config)


def _ranker(folder: Path, config: Mapping[str, Any], labels: tuple[str, ...], name: str) -> Ranker:
    if config.get("classifier_from_token") == _YES_NO:
        return Ranker.YES_NO
    if labels:
        return Ranker.PAIRS if len(labels) == 1 else Ranker.NONE
    if _YES_NO_NAME in name.lower():
        return Ranker.YES_NO
    return Ranker.COSINE if _only_embeds(config) or (folder / "modules.json").is_file() else Ranker.NONE


def _appended(config: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The end token, where tokenizer_config.json asks for it and tokenizer.json does not bring it."""
    name = architecture.end_token(config)
    token = tokenizer.id_of(name) if name is not None else None
    [brought] = tokenizer.encode(["a"], add_special_tokens=True)
    return () if token is None or brought[-1:] == [token] else (token,)
