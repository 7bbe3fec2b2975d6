"""How a checkpoint's hidden states become answers, read from its files: pooling, projections, classification head.

Embeddings follow sentence-transformers: `modules.json` lists the modules, `1_Pooling/config.json` says how tokens
become one vector. Without them the last token of a causal model stands for its text, the first one of an encoder, and
vectors are scaled to unit length. Read once, when a model is loaded. No tensors here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core.architecture import labels
from baton.core.errors import CheckpointError
from baton.engine.model.files import read_config, read_json, read_json_list

_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


class Pooling(enum.Enum):
    """Which tokens' hidden states stand for a text: the last one's, the mean of all, or the first one's."""

    LAST = "lasttoken"
    MEAN = "mean"
    CLS = "cls"


class Activation(enum.Enum):
    """What turns logits of a classification head into its answer."""

    NONE = "Identity"
    SIGMOID = "Sigmoid"
    SOFTMAX = "softmax"


@dataclass(frozen=True, slots=True)
class Dense:
    """A projection after pooling: its folder, and whether tanh follows."""

    folder: Path
    fan_in: int
    fan_out: int
    bias: bool
    tanh: bool


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """`dimensions`: those that embeddings may be cut to, where the checkpoint names them. `max_tokens`: what
    sentence-transformers cuts texts to."""

    pooling: Pooling
    normalize: bool = True
    dense: tuple[Dense, ...] = ()
    dimensions: tuple[int, ...] = ()
    max_tokens: int | None = None


def read_embedding_spec(folder: Path, default: Pooling) -> EmbeddingSpec:
    """What the checkpoint says of embeddings; `default` where it does not say how to pool.

    Raises CheckpointError for modules and ways of pooling that are not known: guessing would give wrong vectors.
    """
    dimensions = read_config(folder).get("matryoshka_dimensions") or ()
    bert_file = folder / "sentence_bert_config.json"
    max_tokens = read_json(bert_file).get("max_seq_length") if bert_file.is_file() else None
    modules_file = folder / "modules.json"
    if not modules_file.is_file():
        pooling_file = folder / "1_Pooling" / "config.json"
        pooling = _pooling(pooling_file) if pooling_file.is_file() else default
        return EmbeddingSpec(pooling, dimensions=tuple(dimensions), max_tokens=max_tokens)
    pooling, dense, normalize = default, [], False
    for module in read_json_list(modules_file):
        kind, where = str(module.get("type")).rpartition(".")[2], folder / str(module.get("path", ""))
        if kind not in _MODULES:
            raise CheckpointError(f"{modules_file}: module {kind} is not supported; {', '.join(_MODULES)} are")
        if kind == "Pooling":
            pooling = _pooling(where / "config.json")
        elif kind == "Dense":
            dense.append(_dense(where))
        normalize = normalize or kind == "Normalize"
    return EmbeddingSpec(pooling, normalize, tuple(dense), tuple(dimensions), max_tokens)


def _pooling(file: Path) -> Pooling:
    config = read_json(file)
    modes = [mode for key, mode in _POOLING_KEYS.items() if config.get(key)] or [str(config.get("pooling_mode"))]
    try:
        [mode] = modes
        return Pooling(mode)
    except ValueError:
        known = ", ".join(pooling.value for pooling in Pooling)
        raise CheckpointError(f"{file}: pooling by {modes} is not supported; one of {known} is") from None


def _dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if activation not in ("Identity", "Tanh"):
        raise CheckpointError(f"{folder / 'config.json'}: activation {activation} is not supported; Identity, Tanh are")
    try:
        fan_in, fan_out = int(config["in_features"]), int(config["out_features"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{folder / 'config.json'} must have in_features and out_features") from None
    return Dense(folder, fan_in, fan_out, bool(config.get("bias", True)), activation == "Tanh")


def read_activation(config: Mapping[str, Any]) -> Activation:
    """What a classification head's logits go through: as sentence-transformers or `problem_type` have it, else a
    sigmoid for one label, a softmax over several."""
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, Mapping) else None
    named = named or config.get("sbert_ce_default_activation_function")
    if named:
        name = str(named).rpartition(".")[2]
        if name not in ("Identity", "Sigmoid"):
            raise CheckpointError(f"config.json: activation {named} is not supported; Identity and Sigmoid are")
        return Activation(name)
    problem = config.get("problem_type")
    if problem == "regression":
        return Activation.NONE
    if problem == "multi_label_classification" or (problem is None and len(labels(config)) == 1):
        return Activation.SIGMOID
    return Activation.SOFTMAX
