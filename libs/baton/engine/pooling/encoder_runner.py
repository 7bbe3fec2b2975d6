"""A checkpoint whose tokens look in both directions, brought to life: encoders, and decoders made to read so.

Texts run whole, packed side by side. There are no pages, so there is nothing to cache, hand over or pull.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from baton.core.architecture import encoder_family
from baton.core.errors import ConfigError
from baton.core.layout import KvLayout
from baton.engine import products
from baton.engine.batch import StepBatch
from baton.engine.cpu.linear import QUANTIZATIONS
from baton.engine.cuda.support import arithmetic, pick_device
from baton.engine.model.config import load_config
from baton.engine.model.decoder import Decoder
from baton.engine.model.encoder import Encoder, load_encoder_weights
from baton.engine.model.encoder_config import load_encoder_config
from baton.engine.model.files import model_revision, read_config
from baton.engine.model.packed import PackedAttention, PackedBatch
from baton.engine.model.pointwise import TorchPointwise
from baton.engine.model.projection import MakeProjection, Products
from baton.engine.model.weights import computed_dtype, load_weights
from baton.engine.pooling.load import load_causal_pooler, load_encoder_pooler
from baton.engine.pooling.pooler import Pooler

_PAGE_SIZE = 16  # of pages that nobody has: a layout names one


class Reader(Protocol):
    """A model over packed texts."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states [T, E]."""


class EncoderRunner:
    """What an encoder engine runs. Use from one thread at a time.

    `layout` names the model and its dtype; of its pages there are none.
    """

    def __init__(
        self, reader: Reader, pooler: Pooler, layout: KvLayout, max_context_tokens: int, device: torch.device
    ) -> None:
        self.pooler = pooler
        self.layout = layout
        self.max_context_tokens = max_context_tokens
        self.vocab_size = pooler.vocab_size
        self.device = device
        self._reader = reader

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "auto",
        device: str = "cpu",
        max_context_tokens: int | None = None,
        quantization: str = "none",
    ) -> EncoderRunner:
        """Load the checkpoint folder `path`; parameters as for TorchModelRunner.load.

        Raises CheckpointError (naming the file or tensor) or ConfigError (naming the setting).
        """
        folder, place = Path(path), torch.device(pick_device(device))
        dtype = computed_dtype(folder, dtype, place)
        projection = _projection(quantization, place)
        load = _encoder if encoder_family(read_config(folder)) else _bidirectional_decoder
        reader, pooler, shape, limit = load(folder, getattr(torch, dtype), place, projection)
        limit = min(limit, pooler.embedding.max_tokens or limit)
        if max_context_tokens is not None and not 1 <= max_context_tokens <= limit:
            raise ConfigError(f"max_context_tokens is {max_context_tokens}; the model allows 1 to {limit}")
        layers, heads, head_dim = shape
        layout = KvLayout(model_revision(folder), dtype, layers, _PAGE_SIZE, heads, head_dim)
        return cls(reader, pooler, layout, max_context_tokens or limit, place)

    @torch.inference_mode()
    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states [T, E] of all tokens."""
        return self._reader.hidden(batch)


_Loaded = tuple[Reader, Pooler, tuple[int, int, int], int]


def _projection(quantization: str, device: torch.device) -> MakeProjection:
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization is {quantization!r}; it must be {', '.join(QUANTIZATIONS)}")
    if device.type == "cpu":
        return QUANTIZATIONS[quantization]
    return products.on_gpu(arithmetic(device), quantization, device).make


def _encoder(folder: Path, dtype: torch.dtype, device: torch.device, projection: MakeProjection) -> _Loaded:
    config = load_encoder_config(folder)
    weights = load_encoder_weights(folder, config, dtype, device, projection)
    pooler = load_encoder_pooler(folder, config, device)
    shape = (config.layers, config.heads, config.head_dim)
    return Encoder(config, weights), pooler, shape, config.context_tokens


def _bidirectional_decoder(
    folder: Path, dtype: torch.dtype, device: torch.device, projection: MakeProjection
) -> _Loaded:
    """As gte-Qwen2 has it: a decoder's layers, in which attention is not causal."""
    config = load_config(folder)
    special = (config.attention_soft_cap, config.latent, config.sinks)
    if any(config.windows) or special != (None, None, None):
        raise ConfigError(
            f"{folder / 'config.json'}: is_causal = false is not supported with sliding windows, soft caps, sinks or "
            "latent attention"
        )
    weights = load_weights(folder, config, dtype, device, None, Products(projection))
    attention = PackedAttention(config.attention_scale)
    decoder = Decoder(config, weights, attention, TorchPointwise(config), config.context_tokens)
    pooler = load_causal_pooler(folder, config.vocab_size, config.hidden_size, weights).without_tokens()
    shape = (config.layers, config.kv_heads, config.head_dim)
    return _BidirectionalDecoder(decoder, attention), pooler, shape, config.context_tokens


class _BidirectionalDecoder:
    """A decoder as a reader."""

    def __init__(self, decoder: Decoder, attention: PackedAttention) -> None:
        """`attention` is the decoder's."""
        self._decoder = decoder
        self._attention = attention

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        step = _step_batch(batch)
        self._attention.plan(step)
        return self._decoder.hidden(step)


def _step_batch(batch: PackedBatch) -> StepBatch:
    """What a decoder is given; slots and pages that nobody looks at are empty."""
    none = torch.empty(0, dtype=torch.int32, device=batch.token_ids.device)
    return StepBatch(
        token_ids=batch.token_ids,
        positions=batch.positions,
        slots=none.long(),
        q_starts=none,
        seq_lens=none,
        page_table=none.view(0, 0),
        logit_rows=torch.arange(len(batch.token_ids), device=batch.token_ids.device),
        q_lens_host=list(batch.lengths),
        seq_lens_host=list(batch.lengths),
    )
