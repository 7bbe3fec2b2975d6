"""Weights of a decoder, read from safetensors into the shapes that the forward pass wants.

Last step of loading a model. Queries, keys and values share one matrix, gate and up another, so that a layer does
four matrix products instead of seven. Tensors are read through a memory map and copied, so that a file that changes
or shrinks later cannot harm a running engine. Knows nothing of attention, pools or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

from baton.core.errors import CheckpointError
from baton.engine.model.config import DecoderConfig
from baton.engine.model.files import TensorEntry, tensor_entries

Progress = Callable[[int, int], None]
Projection = Callable[[torch.Tensor], torch.Tensor]  # x [T, in] -> a new [T, out]
MakeProjection = Callable[[torch.Tensor, torch.Tensor | None], Projection]  # of a weight [out, in] and a bias [out]

_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Linear:
    """`y = x W^T + b`: weight [out, in], bias [out]. x is [..., in], y a new tensor [..., out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. E hidden, F intermediate, H heads, K kv heads, D head_dim."""

    input_norm_E: torch.Tensor
    qkv: Projection  # E -> (H + 2 K) D: queries, keys, values
    q_norm_D: torch.Tensor | None
    k_norm_D: torch.Tensor | None
    output: Projection  # H D -> E
    mlp_norm_E: torch.Tensor
    gate_up: Projection  # E -> 2 F: gate, up
    down: Projection  # F -> E


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder, of one dtype on one device."""

    embedding_VE: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm_E: torch.Tensor
    head: Projection  # E -> V; tied, made of `embedding_VE`


def load_weights(
    path: str | Path,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    projection: MakeProjection = Linear,
) -> DecoderWeights:
    """Read the weights that `config` describes from the checkpoint folder `path`, as `dtype` on `device`.

    `projection` makes a layer of each matrix as soon as it is read; what it does not keep of that is freed at once.
    `progress(done_bytes, total_bytes)` counts bytes of the files, and is called after each tensor.
    Raises CheckpointError naming the file (missing, truncated, corrupt) or the tensor (missing, wrong shape or type).
    """
    entries = tensor_entries(Path(path))
    with torch.inference_mode():
        return _Loader(entries, dtype, torch.device(device), progress, projection).decoder(config)


def stored_dtype(path: str | Path) -> str:
    """Name of the dtype that most of the checkpoint's bytes are stored in: float32, bfloat16 or float16."""
    by_dtype: dict[str, int] = {}
    for entry in tensor_entries(Path(path)).values():
        by_dtype[entry.dtype] = by_dtype.get(entry.dtype, 0) + entry.nbytes
    most = max(by_dtype, key=lambda dtype: by_dtype[dtype], default="none")
    if most not in _STORED_DTYPES:
        raise CheckpointError(f"{path}: weights are stored as {most}; {', '.join(_STORED_DTYPES)} are supported")
    return str(_STORED_DTYPES[most]).removeprefix("torch.")


class _Loader:
    """Reads named tensors of known shapes, each once, into new memory."""

    def __init__(
        self,
        entries: dict[str, TensorEntry],
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None,
        projection: MakeProjection,
    ) -> None:
        self._entries = entries
        self._dtype = dtype
        self._device = device
        self._progress = progress
        self._projection = projection
        self._files: dict[Path, Any] = {}
        self._done_bytes = 0
        self._total_bytes = sum(entry.nbytes for entry in entries.values())

    def decoder(self, config: DecoderConfig) -> DecoderWeights:
        embedding = self._stacked(["model.embed_tokens.weight"], [(config.vocab_size, config.hidden_size)])
        layers = tuple(self._layer(config, f"model.layers.{layer}") for layer in range(config.layers))
        final_norm = self._stacked(["model.norm.weight"], [(config.hidden_size,)])
        head = embedding
        if not config.tied_embeddings:
            head = self._stacked(["lm_head.weight"], [(config.vocab_size, config.hidden_size)])
        if self._progress is not None:
            self._progress(self._total_bytes, self._total_bytes)
        return DecoderWeights(embedding, layers, final_norm, self._projection(head, None))

    def _layer(self, config: DecoderConfig, prefix: str) -> LayerWeights:
        hidden, inner = (config.hidden_size,), config.intermediate_size
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        q_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
        q_norm = k_norm = None
        if config.qk_norm:
            q_norm = self._stacked([f"{attention}.q_norm.weight"], [(config.head_dim,)])
            k_norm = self._stacked([f"{attention}.k_norm.weight"], [(config.head_dim,)])
        return LayerWeights(
            input_norm_E=self._stacked([f"{prefix}.input_layernorm.weight"], [hidden]),
            qkv=self._linear(
                [f"{attention}.{part}_proj" for part in "qkv"],
                [q_size, kv_size, kv_size],
                config.hidden_size,
                config.qkv_bias,
            ),
            q_norm_D=q_norm,
            k_norm_D=k_norm,
            output=self._linear([f"{attention}.o_proj"], [config.hidden_size], q_size, config.output_bias),
            mlp_norm_E=self._stacked([f"{prefix}.post_attention_layernorm.weight"], [hidden]),
            gate_up=self._linear(
                [f"{mlp}.gate_proj", f"{mlp}.up_proj"], [inner, inner], config.hidden_size, config.mlp_bias
            ),
            down=self._linear([f"{mlp}.down_proj"], [config.hidden_size], inner, config.mlp_bias),
        )

    def _linear(self, names: Sequence[str], outs: Sequence[int], fan_in: int, bias: bool) -> Projection:
        weight = self._stacked([f"{name}.weight" for name in names], [(out, fan_in) for out in outs])
        if not bias:
            return self._projection(weight, None)
        return self._projection(weight, self._stacked([f"{name}.bias" for name in names], [(out,) for out in outs]))

    def _stacked(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """The named tensors, one after the other along their first dimension."""
        rows = sum(shape[0] for shape in shapes)
        stacked = torch.empty((rows, *shapes[0][1:]), dtype=self._dtype, device=self._device)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            stacked[start : start + shape[0]].copy_(self._read(name, shape))
            start += shape[0]
        return stacked

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(f"the checkpoint has no tensor {name}, which its config.json asks for")
        if entry.shape != shape:
            raise CheckpointError(
                f"tensor {name} in {entry.file} has shape {list(entry.shape)}; its config.json asks for {list(shape)}"
            )
        if entry.dtype not in _STORED_DTYPES:
            raise CheckpointError(
                f"tensor {name} in {entry.file} is stored as {entry.dtype}; {', '.join(_STORED_DTYPES)} are supported"
            )
        try:
            if entry.file not in self._files:
                self._files[entry.file] = safe_open(entry.file, framework="pt", device="cpu")
            tensor = self._files[entry.file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error}") from None
        if self._progress is not None:
            self._done_bytes += entry.nbytes
            self._progress(self._done_bytes, self._total_bytes)
        return tensor
