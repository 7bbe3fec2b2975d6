"""What a decoder looks like, read from a checkpoint's config.json and generation_config.json.

One description for the Llama, Mistral, Qwen2 and Qwen3 families: the decoder and the weights know no family, only
these fields. Values that a config.json leaves out mean what the family's modelling code takes them to mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core.errors import CheckpointError
from baton.engine.model.files import read_config, read_json
from baton.engine.model.rope import Rope, parse_rope


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape and variant of a decoder-only transformer. Sizes are counts of elements, `context_tokens` of positions.

    `windows` has one entry per layer: None when a token attends to all before it, else the number of latest
    positions, its own included, that it attends to. `dtype` is what the checkpoint says it is stored in, if it does.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    context_tokens: int
    eos_token_ids: frozenset[int]
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class _Family:
    """What distinguishes a family, and what its code assumes where config.json is silent (None: derived or absent)."""

    model_type: str
    max_position: int
    kv_heads: int | None = None
    head_dim: int | None = None
    eos_token_id: int | None = None
    qkv_bias: bool | None = None  # None: as `attention_bias` says
    output_bias: bool | None = None
    has_mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None


_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family("llama", 2048, eos_token_id=2, has_mlp_bias=True),
    "MistralForCausalLM": _Family(
        "mistral", 131_072, kv_heads=8, eos_token_id=2, qkv_bias=False, output_bias=False, window=4096
    ),
    "Qwen2ForCausalLM": _Family("qwen2", 32_768, kv_heads=32, qkv_bias=True, output_bias=False, window=4096),
    "Qwen3ForCausalLM": _Family("qwen3", 32_768, kv_heads=32, head_dim=128, qk_norm=True, window=4096),
}
SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)


def load_config(path: str | Path) -> DecoderConfig:
    """Read the configuration of the checkpoint folder `path`.

    Raises CheckpointError for an unknown architecture, and for whatever would make its logits differ from those of
    the family's own code: quantized weights, other activations, unknown rotations, sizes that do not fit together.
    """
    folder = Path(path)
    raw = read_config(folder)
    eos = _eos_token_ids(folder, raw)
    try:
        return _parse(raw, eos)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error.message}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: a value is of the wrong kind ({error})") from None


def _parse(raw: Mapping[str, Any], eos: frozenset[int] | None) -> DecoderConfig:
    architecture, family = _family(raw)
    if raw.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantized (quantization_config); bf16, fp16 and fp32 are supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"hidden_act is {raw['hidden_act']!r}; silu is supported")
    heads = _size(raw, "num_attention_heads")
    hidden_size = _size(raw, "hidden_size")
    kv_heads = _size(raw, "num_key_value_heads", heads if "num_key_value_heads" in raw else family.kv_heads or heads)
    head_dim = _size(raw, "head_dim", family.head_dim or hidden_size // heads)
    if heads % kv_heads:
        raise CheckpointError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2:
        raise CheckpointError(f"head_dim is {head_dim}; it must be even")
    layers = _size(raw, "num_hidden_layers")
    rope = parse_rope(raw, _size(raw, "max_position_embeddings", family.max_position))
    attention_bias = bool(raw.get("attention_bias", False))
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if eos is None:
        eos = frozenset() if family.eos_token_id is None else frozenset((family.eos_token_id,))
    return DecoderConfig(
        architecture=architecture,
        vocab_size=_size(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_size(raw, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=rope,
        windows=_windows(raw, family, layers),
        context_tokens=rope.context_tokens,
        eos_token_ids=eos,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=attention_bias if family.output_bias is None else family.output_bias,
        mlp_bias=family.has_mlp_bias and bool(raw.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        dtype=str(dtype).removeprefix("torch.") if dtype else None,
    )


def _family(raw: Mapping[str, Any]) -> tuple[str, _Family]:
    named = raw.get("architectures") or [
        name for name, family in _FAMILIES.items() if family.model_type == raw.get("model_type")
    ]
    for architecture in named:
        if architecture in _FAMILIES:
            return architecture, _FAMILIES[architecture]
    what = ", ".join(map(str, named)) or f"of model_type {raw.get('model_type')!r}"
    raise CheckpointError(f"architecture {what} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")


def _size(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{name} is {value!r}; it must be a positive integer")
    return value


def _windows(raw: Mapping[str, Any], family: _Family, layers: int) -> tuple[int | None, ...]:
    """Sliding windows by layer. Mistral slides everywhere or nowhere; Qwen by `layer_types` or `max_window_layers`."""
    if family.window is None:
        return (None,) * layers
    by_layer_type = family.model_type != "mistral"
    slides = bool(raw.get("use_sliding_window", False)) if by_layer_type else True
    slides = slides and raw.get("sliding_window", family.window) is not None
    window = _size(raw, "sliding_window", family.window) if slides else None
    kinds = raw.get("layer_types")
    if kinds is None:
        first = int(raw.get("max_window_layers", 28)) if by_layer_type else 0
        return tuple(window if layer >= first else None for layer in range(layers))
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"layer_types must name full_attention or sliding_attention for each of the {layers} layers; it is {kinds}"
        )
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if not by_layer_type and windows != (window,) * layers:
        raise CheckpointError("layer_types mixes full and sliding attention, which MistralForCausalLM does not define")
    if "sliding_attention" in kinds and window is None and by_layer_type:
        raise CheckpointError("layer_types has sliding_attention, but use_sliding_window is off")
    return windows


def _eos_token_ids(folder: Path, raw: Mapping[str, Any]) -> frozenset[int] | None:
    """Ids that end a generation: those of generation_config.json if it names any, else those of config.json."""
    generation_file = folder / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    for source, file in ((generation, generation_file), (raw, folder / "config.json")):
        value = source.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
            raise CheckpointError(f"{file}: eos_token_id is {value!r}; it must be a token id or a list of them")
        return frozenset(ids)
    return frozenset() if "eos_token_id" in raw else None
