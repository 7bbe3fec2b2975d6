"""What an encoder looks like, read from a checkpoint's config.json: the BERT and RoBERTa (XLM-R) families.

They are one architecture. RoBERTa counts positions from after its padding token's id, and has a kind of segments, but
no use for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core.architecture import ENCODER_FAMILIES, classifies, encoder_family
from baton.core.errors import CheckpointError
from baton.engine.model.files import read_config

_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}  # torch's name of the approximation


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Shape of an encoder. Sizes are counts of elements. `prefix`: what its tensors' names begin with, if anything.

    `first_position`: the row of the position table for a text's first token. `segments`: 2 where the second of a pair
    of texts is marked. `gelu`: torch's name of the approximation.
    """

    prefix: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    norm_eps: float
    positions: int
    first_position: int
    segments: int
    gelu: str
    classifies: bool
    dtype: str | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def context_tokens(self) -> int:
        return self.positions - self.first_position


def load_encoder_config(path: str | Path) -> EncoderConfig:
    """Read the configuration of the checkpoint folder `path`. Raises CheckpointError for what is not supported."""
    file = Path(path) / "config.json"
    raw = read_config(Path(path))
    family = encoder_family(raw)
    if family is None:
        named = ", ".join(ENCODER_FAMILIES)
        raise CheckpointError(f"{file}: {raw.get('architectures')} is no encoder; encoders are those of {named}")
    try:
        return _parse(raw, family)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error.message}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: a value is missing or of the wrong kind ({error!r})") from None


def _parse(raw: Mapping[str, Any], family: str) -> EncoderConfig:
    for name, plain in (("position_embedding_type", "absolute"), ("is_decoder", False), ("quantization_config", None)):
        if raw.get(name) not in (plain, None):
            raise CheckpointError(f"{name} is {raw[name]!r}; {plain!r} is supported")
    activation = raw.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"hidden_act is {activation!r}; supported are {', '.join(_ACTIVATIONS)}")
    if raw["hidden_size"] % raw["num_attention_heads"]:
        raise CheckpointError("hidden_size is not a multiple of num_attention_heads")
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    padding = raw.get("pad_token_id")
    return EncoderConfig(
        prefix=f"{family}.",
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        layers=int(raw["num_hidden_layers"]),
        heads=int(raw["num_attention_heads"]),
        norm_eps=float(raw.get("layer_norm_eps", 1e-12)),
        positions=int(raw["max_position_embeddings"]),
        first_position=(1 if padding is None else int(padding)) + 1 if family == "roberta" else 0,
        segments=int(raw.get("type_vocab_size", 2)),
        gelu=_ACTIVATIONS[activation],
        classifies=classifies(raw),
        dtype=str(dtype).removeprefix("torch.") if dtype else None,
    )
