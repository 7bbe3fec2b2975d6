"""The forward pass of a bidirectional encoder over packed texts: BERT, RoBERTa, XLM-R.

Texts stand one after the other, without padding; only attention sees where each begins. Nothing is kept between calls:
there are no pages.

    T  tokens of all texts    E  hidden size    F  intermediate size    H  heads    D  head_dim
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from baton.engine.model.encoder_config import EncoderConfig
from baton.engine.model.files import TensorEntry, tensor_entries
from baton.engine.model.packed import PackedAttention, PackedBatch
from baton.engine.model.projection import Linear, MakeProjection, Projection
from baton.engine.model.weights import read_tensors

Norm = tuple[torch.Tensor, torch.Tensor]  # weight and bias, each [E]


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """Weights of one layer."""

    qkv: Projection  # E -> 3 E
    output: Projection  # E -> E
    attention_norm: Norm
    up: Projection  # E -> F
    down: Projection  # F -> E
    output_norm: Norm


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """Weights of an encoder. `positions` begin with a text's first token."""

    words_VE: torch.Tensor
    positions_PE: torch.Tensor
    segments_SE: torch.Tensor
    embedding_norm: Norm
    layers: tuple[EncoderLayer, ...]


class Encoder:
    """A model ready to run; one call at a time."""

    def __init__(self, config: EncoderConfig, weights: EncoderWeights) -> None:
        self._config = config
        self._weights = weights
        self._attention = PackedAttention()

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states [T, E]."""
        config, weights = self._config, self._weights
        words_TE = weights.words_VE[batch.token_ids]
        hidden_TE = words_TE + weights.segments_SE[batch.segments % config.segments]
        hidden_TE = self._norm(hidden_TE + weights.positions_PE[batch.positions], weights.embedding_norm)
        self._attention.begin(batch.lengths)
        for layer in weights.layers:
            q_THD, k_THD, v_THD = layer.qkv(hidden_TE).unflatten(1, (3, config.heads, -1)).unbind(1)
            attended_TE = self._attention.attend(q_THD, k_THD, v_THD).flatten(1)
            hidden_TE = self._norm(layer.output(attended_TE) + hidden_TE, layer.attention_norm)
            inner_TF = F.gelu(layer.up(hidden_TE), approximate=config.gelu)
            hidden_TE = self._norm(layer.down(inner_TF) + hidden_TE, layer.output_norm)
        return hidden_TE

    def _norm(self, x_TE: torch.Tensor, norm: Norm) -> torch.Tensor:
        weight, bias = norm
        return F.layer_norm(x_TE, (self._config.hidden_size,), weight, bias, self._config.norm_eps)


def load_encoder_weights(
    path: str | Path,
    config: EncoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    projection: MakeProjection = Linear,
) -> EncoderWeights:
    """Read an encoder's weights from the checkpoint folder `path`. Raises CheckpointError as `load_weights` does."""
    entries = without_prefix(tensor_entries(Path(path)), config.prefix)
    size, inner = config.hidden_size, config.intermediate_size

    def norm(name: str) -> Norm:
        found = read_tensors(entries, {f"{name}.weight": (size,), f"{name}.bias": (size,)}, dtype, device)
        return found[f"{name}.weight"], found[f"{name}.bias"]

    def linear(names: list[str], fan_out: int, fan_in: int) -> Projection:
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (fan_out, fan_in) for name in names}
        shapes |= {f"{name}.bias": (fan_out,) for name in names}
        found = read_tensors(entries, shapes, dtype, device)
        weight = torch.cat([found[f"{name}.weight"] for name in names])
        return projection(weight, torch.cat([found[f"{name}.bias"] for name in names]))

    def layer(prefix: str) -> EncoderLayer:
        attention = f"{prefix}.attention"
        return EncoderLayer(
            qkv=linear([f"{attention}.self.{part}" for part in ("query", "key", "value")], size, size),
            output=linear([f"{attention}.output.dense"], size, size),
            attention_norm=norm(f"{attention}.output.LayerNorm"),
            up=linear([f"{prefix}.intermediate.dense"], inner, size),
            down=linear([f"{prefix}.output.dense"], size, inner),
            output_norm=norm(f"{prefix}.output.LayerNorm"),
        )

    with torch.inference_mode():
        tables = {
            "embeddings.word_embeddings.weight": (config.vocab_size, size),
            "embeddings.position_embeddings.weight": (config.positions, size),
            "embeddings.token_type_embeddings.weight": (config.segments, size),
        }
        words, positions, segments = read_tensors(entries, tables, dtype, device).values()
        return EncoderWeights(
            words_VE=words,
            positions_PE=positions[config.first_position :],
            segments_SE=segments,
            embedding_norm=norm("embeddings.LayerNorm"),
            layers=tuple(layer(f"encoder.layer.{index}") for index in range(config.layers)),
        )


def without_prefix(entries: dict[str, TensorEntry], prefix: str) -> dict[str, TensorEntry]:
    """Names as a model without a head has them: `prefix` taken off where it stands."""
    return {name.removeprefix(prefix): entry for name, entry in entries.items()}
