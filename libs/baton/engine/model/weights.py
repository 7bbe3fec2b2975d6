"""Weights of a decoder, read from safetensors into the shapes that the forward pass wants.

Last step of loading a model. Queries, keys and values share one matrix, gate and up another, so that a layer does
four matrix products instead of seven. What tensors are called comes from the family's names, what is there from the
config. Knows nothing of attention, pools or requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from baton.core.errors import CheckpointError, ConfigError
from baton.core.layout import DTYPE_BYTES
from baton.engine.model.decoder_config import DecoderConfig, LatentConfig
from baton.engine.model.expert_weights import ExpertLoader
from baton.engine.model.experts import Experts
from baton.engine.model.files import TensorEntry, read_config, tensor_entries
from baton.engine.model.heads import AttentionHeads, LatentHeads, SplitHeads
from baton.engine.model.matrices import Matrices, Matrix, picked
from baton.engine.model.mixer_weights import MixerLoader
from baton.engine.model.mixers import Beside, StateMixer
from baton.engine.model.pointwise import Norm
from baton.engine.model.projection import PLAIN, Mlp, Products, Projection, Scaled, Summed
from baton.engine.model.quantized.matrix import QuantizedMatrix, Stack
from baton.engine.model.quantized.scheme import scheme_of
from baton.engine.model.rope import head_order
from baton.engine.model.tensor_names import by_first_names, named_as_causal
from baton.engine.model.tensors import STORED_DTYPES, Progress, TensorReader
from baton.models.gguf.config import METHOD as GGUF

log = structlog.get_logger(__name__)

# Layers that are made at a time: while one waits for its file, or for a single thread's work, the other goes on. What
# torch computes for each has as many threads as torch was given.
_LOADERS = 2


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. E hidden, H query heads. Norms are None where the family has none.

    A norm stands before attention and MLP, a post norm behind, before their results are added.
    """

    attention_norm: Norm | None
    heads: AttentionHeads | StateMixer | Beside
    sinks_H: torch.Tensor | None  # float32
    output: Projection  # what `heads` makes of what was attended, or mixed -> E
    attention_post_norm: Norm | None
    mlp_norm: Norm | None
    mlp: Mlp | Experts | None
    mlp_post_norm: Norm | None

    @property
    def mixer(self) -> StateMixer | None:
        """What keeps a state."""
        if isinstance(self.heads, Beside):
            return self.heads.mixer
        return self.heads if isinstance(self.heads, StateMixer) else None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder, of one dtype on one device."""

    embedding_VE: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Norm
    head: Projection | None  # E -> V; tied, made of `embedding_VE`; None: the model draws no tokens


def load_weights(
    path: str | Path,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    products: Products = PLAIN,
) -> DecoderWeights:
    """Read the weights that `config` describes from the checkpoint folder `path`, as `dtype` on `device`.

    `products` makes a layer of each matrix as soon as it is read; what it does not keep of that is freed at once.
    `progress(done_bytes, total_bytes)` counts bytes of the files, and is called after each tensor.
    Raises CheckpointError naming the file (missing, truncated, corrupt) or the tensor (missing, wrong shape or type).
    """
    found = tensor_entries(Path(path))
    entries = named_as_causal(found)
    if entries is not found and not config.tied_embeddings and "lm_head.weight" not in entries:
        config = replace(config, has_head=False)
    scheme = scheme_of(Path(path), read_config(Path(path)))
    if scheme is not None and scheme.method == GGUF:
        # What a family adds to weights of norms is added there.
        whole = replace(config.norm, plus_one=False)
        config = replace(config, norm=whole, interleaved=config.interleaved or scheme.rotates_neighbours)
    with torch.inference_mode():
        reader = TensorReader(by_first_names(entries, config), dtype, torch.device(device), progress)
        matrices = Matrices(reader, products, scheme)
        weights = _Loader(config, matrices).decoder()
    if scheme is not None:
        tally = matrices.tally
        log.info("quantized checkpoint", method=scheme.method, kept=tally.kept, spread_out=tally.spread_out)
    return weights


def read_tensors(
    entries: dict[str, TensorEntry], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """The tensors named in `shapes`, in new memory. Raises CheckpointError as `load_weights` does."""
    reader = TensorReader(entries, dtype, device)
    return {name: reader.one(name, shape) for name, shape in shapes.items()}


def stored_dtype(path: str | Path) -> str:
    """Name of the dtype that most of the checkpoint's bytes are stored in: float32, bfloat16 or float16.

    What is stored in fewer bits counts where there is nothing else; CheckpointError then. Of a quantized checkpoint it
    is what its config.json names.
    """
    raw = read_config(Path(path))
    told = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    if told in DTYPE_BYTES and scheme_of(Path(path), raw) is not None:
        return told
    by_dtype: dict[str, int] = {}
    for entry in tensor_entries(Path(path)).values():
        by_dtype[entry.dtype] = by_dtype.get(entry.dtype, 0) + entry.nbytes
    most = max(by_dtype, key=lambda dtype: (dtype in STORED_DTYPES, by_dtype[dtype]), default="none")
    if most not in STORED_DTYPES:
        raise CheckpointError(f"{path}: weights are stored as {most}; {', '.join(STORED_DTYPES)} are supported")
    return str(STORED_DTYPES[most]).removeprefix("torch.")


def computed_dtype(path: str | Path, dtype: str, device: torch.device) -> str:
    """What a checkpoint computes in. `dtype` says it; auto: what it is stored in, but float32 for float16 on a CPU,
    where float16 products are slow and imprecise. Raises ConfigError for another name, CheckpointError as above."""
    if dtype not in ("auto", *DTYPE_BYTES):
        raise ConfigError(f"dtype is {dtype!r}; it must be auto, {', '.join(DTYPE_BYTES)}")
    if dtype != "auto":
        return dtype
    stored = stored_dtype(path)
    return "float32" if stored == "float16" and device.type == "cpu" else stored


class _Loader:
    """Makes the parts of one decoder, each of tensors that are read once."""

    def __init__(self, config: DecoderConfig, matrices: Matrices) -> None:
        self._config = config
        self._matrices = matrices
        self._reader = matrices.reader

    def decoder(self) -> DecoderWeights:
        config, names = self._config, self._config.names
        stored = self._matrices.one(names.embedding, (config.vocab_size, config.hidden_size))
        embedding = self._matrices.dense(stored)
        with ThreadPoolExecutor(_LOADERS, "baton-load") as loaders:
            layers = tuple(loaders.map(self._layer, range(config.layers)))
        final_norm = self._norm(names.final_norm, (config.hidden_size,))
        head = self._head(stored if isinstance(stored, QuantizedMatrix) else embedding)
        self._reader.done()
        return DecoderWeights(embedding, layers, final_norm, head)

    def _head(self, embedding: Matrix) -> Projection | None:
        config = self._config
        if not config.has_head:
            return None
        if config.tied_embeddings:
            return self._matrices.product(embedding, None)
        return self._matrices.linear([config.names.head], [config.vocab_size], config.hidden_size, False)

    @torch.inference_mode()
    def _layer(self, layer: int) -> LayerWeights:
        config, names = self._config, self._config.names_of(layer)
        block, mlp_block = config.blocks[layer]
        prefix = names.layer.format(block)
        mlp_prefix = None if mlp_block is None else names.layer.format(mlp_block)
        sinks = None
        if config.sinks is not None:
            sinks = self._reader.one(f"{prefix}.{config.sinks}", (config.heads,)).float()
        heads, output = self._heads(layer, prefix)
        return LayerWeights(
            attention_norm=self._layer_norm(prefix, names.attention_norm),
            heads=heads,
            sinks_H=sinks,
            output=output,
            attention_post_norm=self._layer_norm(prefix, names.attention_post_norm),
            mlp_norm=self._layer_norm(mlp_prefix, names.mlp_norm),
            mlp=None if mlp_prefix is None else self._mlp(layer, mlp_prefix),
            mlp_post_norm=self._layer_norm(mlp_prefix, names.mlp_post_norm),
        )

    def _layer_norm(self, prefix: str | None, name: str | None) -> Norm | None:
        if prefix is None or name is None:
            return None
        return self._norm(f"{prefix}.{name}", (self._config.hidden_size,))

    def _mlp(self, layer: int, prefix: str) -> Mlp | Experts:
        config, names = self._config, self._config.names_of(layer)
        if config.moe is not None and layer in config.moe.layers:
            return ExpertLoader(config, config.moe, self._matrices, prefix).experts()
        gate_up, down = [f"{prefix}.{name}" for name in names.gate_up], f"{prefix}.{names.down}"
        mlp = self._matrices.mlp(config, gate_up, down, config.intermediate_size, config.mlp_bias)
        if config.multipliers is None:
            return mlp
        by_gate = self._each((config.multipliers.gate, config.intermediate_size), (1.0, config.intermediate_size))
        return Mlp(Scaled(mlp.gate_up, after=by_gate), Scaled(mlp.down, after=config.multipliers.down))

    def _heads(self, layer: int, prefix: str) -> tuple[AttentionHeads | StateMixer | Beside, Projection]:
        """What attends, or keeps a state, or both; and the output matrix."""
        config = self._config
        if layer not in config.stateful:
            return self._attention(layer, prefix)
        mixer, mixed = MixerLoader(config, self._matrices, layer, prefix).mixer()
        if layer not in config.attending:
            return mixer, mixed
        heads, attended = self._attention(layer, prefix)
        width = config.heads * config.head_dim
        return Beside(heads, mixer), Summed((attended, mixed), (width, config.mixed_size))

    def _attention(self, layer: int, prefix: str) -> tuple[AttentionHeads, Projection]:
        """Heads and their output matrix."""
        config, names, latent = self._config, self._config.names_of(layer), self._config.latent
        size = config.heads * (config.head_dim if latent is None else latent.value)
        heads = self._split_heads(layer, prefix) if latent is None else self._latent_heads(latent, layer, prefix)
        output = self._matrices.linear([f"{prefix}.{names.output}"], [config.hidden_size], size, config.output_bias)
        multipliers = config.multipliers
        if multipliers is None or not isinstance(heads, SplitHeads):
            return heads, output
        kv_size = config.kv_heads * config.head_dim
        by_part = self._each((1.0, size), (multipliers.key, kv_size), (1.0, kv_size))
        scaled = replace(heads, qkv=Scaled(heads.qkv, multipliers.attention_in, by_part))
        return scaled, Scaled(output, after=multipliers.attention_out)

    def _each(self, *parts: tuple[float, int]) -> torch.Tensor:
        """A number for each output, of parts of so many."""
        numbers, counts = zip(*parts, strict=True)
        spread = torch.tensor(numbers).repeat_interleave(torch.tensor(counts))
        return spread.to(self._reader.device, self._reader.dtype)

    def _split_heads(self, layer: int, prefix: str) -> SplitHeads:
        """Heads whose queries and keys have their dimensions in `head_order`."""
        config, names = self._config, self._config.names
        q_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
        parts = [f"{prefix}.{name}" for name in names.qkv]
        outs = [2 * q_size if config.gated_attention else q_size, kv_size, kv_size]
        weight, bias = self._matrices.kinds(parts, outs, config.hidden_size, config.qkv_bias)
        gate = None
        if config.gated_attention:
            weight, bias, gate = self._without_gates(weight, bias)
        order = head_order(config.ropes[layer], config.head_dim, config.interleaved)
        weight, bias = _reordered(weight, bias, q_size + kv_size, config.head_dim, 0, order)
        q_norm = k_norm = None
        if config.qk_norm == "unit" and config.ropes[layer].part:
            q_norm = k_norm = Norm(torch.ones(config.head_dim, dtype=self._reader.dtype, device=self._reader.device))
        elif config.qk_norm not in ("none", "unit"):
            q_norm = self._head_norm(layer, f"{prefix}.{names.q_norm}", config.heads)
            k_norm = self._head_norm(layer, f"{prefix}.{names.k_norm}", config.kv_heads)
        return SplitHeads(self._matrices.product(weight, bias), q_norm, k_norm, gate)

    def _without_gates(
        self, weight: Matrix | Stack, bias: torch.Tensor | None
    ) -> tuple[Matrix | Stack, torch.Tensor | None, Projection]:
        """Queries, keys and values of a matrix in which a head's gates stand after its queries; and the gates."""
        numbers, gated = torch.arange(weight.shape[0]), 2 * self._config.heads * self._config.head_dim
        queries, gates = numbers[:gated].view(self._config.heads, 2, -1).transpose(0, 1).flatten(1)
        rest = torch.cat((queries, numbers[gated:]))
        gate = self._matrices.product(picked(weight, gates), None if bias is None else bias[gates])
        return picked(weight, rest), None if bias is None else bias[rest], gate

    def _latent_heads(self, latent: LatentConfig, layer: int, prefix: str) -> LatentHeads:
        config, names, hidden = self._config, self._config.names, self._config.hidden_size
        order = head_order(config.ropes[layer], latent.rotated, config.interleaved)
        q_down = q_down_norm = None
        q_name, q_in = names.q_whole, hidden
        if latent.q_rank is not None:
            q_name, q_in = names.q_up, latent.q_rank
            q_down = self._matrices.linear([f"{prefix}.{names.q_down}"], [latent.q_rank], hidden, config.qkv_bias)
            q_down_norm = self._norm(f"{prefix}.{names.q_down_norm}", (latent.q_rank,))
        q_dim, kv_dim = latent.plain + latent.rotated, latent.plain + latent.value
        q_up, _ = self._matrices.kinds([f"{prefix}.{q_name}"], [config.heads * q_dim], q_in, False)
        q_up, _ = _reordered(q_up, None, config.heads * q_dim, q_dim, latent.plain, order)
        kv_size = latent.rank + latent.rotated
        kv_down, kv_bias = self._matrices.kinds([f"{prefix}.{names.kv_down}"], [kv_size], hidden, config.qkv_bias)
        kv_down, kv_bias = _reordered(kv_down, kv_bias, kv_size, kv_size, latent.rank, order)
        kv_up, _ = self._matrices.dense_parts([f"{prefix}.{names.kv_up}"], [config.heads * kv_dim], latent.rank, False)
        k_up_HPL, v_up_HVL = kv_up.unflatten(0, (config.heads, kv_dim)).split((latent.plain, latent.value), dim=1)
        return LatentHeads(
            config=latent,
            q_down=q_down,
            q_down_norm=q_down_norm,
            q_up=self._matrices.product(q_up, None),
            kv_down=self._matrices.product(kv_down, kv_bias),
            kv_norm=self._norm(f"{prefix}.{names.kv_norm}", (latent.rank,)),
            k_up_HPL=k_up_HPL.contiguous(),
            v_up_HLV=v_up_HVL.transpose(1, 2).contiguous(),
        )

    def _head_norm(self, layer: int, name: str, heads: int) -> Norm:
        """A norm of queries or keys: weights [D] of a head, or of all heads [heads * D] or [heads, D]."""
        config = self._config
        shapes = {"head": (config.head_dim,), "heads": (heads, config.head_dim), "all": (heads * config.head_dim,)}
        norm = self._norm(name, shapes[config.qk_norm])
        order = head_order(config.ropes[layer], config.head_dim, config.interleaved)
        if order is None:
            return norm
        weight = norm.weight.view(-1, config.head_dim)[:, order].reshape(norm.weight.shape)
        return replace(norm, weight=weight)

    def _norm(self, name: str, shape: tuple[int, ...]) -> Norm:
        kind = self._config.norm
        weight = self._reader.one(f"{name}.weight", shape)
        bias = self._reader.one(f"{name}.bias", shape).float() if kind.bias else None
        if kind.wide:
            weight = weight.float()
        return Norm(weight + 1 if kind.plus_one else weight, bias, kind.centred)


def _reordered(
    weight: Matrix | Stack, bias: torch.Tensor | None, outs: int, head_dim: int, start: int, order: list[int] | None
) -> tuple[Matrix | Stack, torch.Tensor | None]:
    """Both with outputs from `start` on of each head, `head_dim` outputs, in `order`, of the first `outs`."""
    if order is None:
        return weight, bias
    numbers = torch.arange(weight.shape[0])
    turning = numbers[:outs].view(-1, head_dim)[:, start:]
    turning.copy_(turning[:, order])
    return picked(weight, numbers), None if bias is None else bias[numbers]
