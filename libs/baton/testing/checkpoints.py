"""Small random checkpoints in Hugging Face form, written without any download.

For tests and benchmarks, in any family, size and dtype. What such a model says means nothing, but it says it
reproducibly: weights come from a seed, and are scaled so that greedy output wanders instead of repeating itself and
the likeliest token is clearly so. `transformers` loads the folders as any other. Needs no torch.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baton.testing.tokenizer import BOS, BYTE_CHARACTERS, EOS, PAD, SPECIAL_TOKENS, special_token_id, write_tokenizer

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
Array = npt.NDArray[np.float32]
_STORED_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_LOGIT_SCALE = 3.0
_SPACE_AND_NEWLINE = "ĠĊ"  # as byte-level tokenizers write them


@dataclass(frozen=True, slots=True)
class _Shape:
    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    config: Mapping[str, Any] = field(default_factory=dict)


def make_checkpoint(
    path: str | Path,
    family: str = "llama",
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int | None = None,
    vocab: int = 512,
    dtype: str = "float32",
    max_position: int = 4096,
    tied: bool = False,
    shards: int = 1,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint with a tokenizer into the folder `path`, which is made; returns it.

    `family` is a key of ARCHITECTURES, `dtype` float32, bfloat16 or float16. `vocab` is the size of both the embedding
    and the tokenizer: special tokens, 256 bytes, and merges. `shards` > 1 spreads tensors over that many files with
    an index. `config` adds to config.json or overrides it, for instance `{"rope_parameters": {...}}` or
    `{"sliding_window": 64}`; it does not change the shapes of tensors.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    shape = _Shape(
        family=family,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate or hidden * 11 // 4,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        vocab=vocab,
        tied=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        config=config or {},
    )
    write_tokenizer(folder, vocab, max_position)
    _write_json(folder / "config.json", _config(shape, dtype, max_position))
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": special_token_id(BOS),
            "eos_token_id": special_token_id(EOS),
            "pad_token_id": special_token_id(PAD),
        },
    )
    _write_weights(folder, _weights(shape, seed), dtype, shards)
    return folder


def _config(shape: _Shape, dtype: str, max_position: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[shape.family]],
        "model_type": shape.family,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_position,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": shape.tied,
        "bos_token_id": special_token_id(BOS),
        "eos_token_id": special_token_id(EOS),
        "pad_token_id": special_token_id(PAD),
        "dtype": dtype,
    }
    if shape.family in ("llama", "qwen3"):
        config["attention_bias"] = shape.attention_bias
    if shape.family == "llama":
        config["mlp_bias"] = shape.mlp_bias
    if shape.family == "mistral":
        config["sliding_window"] = None
    config.update(shape.config)
    return config


def _weights(shape: _Shape, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        name: (mean + deviation * random.standard_normal(size, dtype=np.float32)).astype(np.float32)
        for name, size, mean, deviation in _tensors(shape)
    }


def _tensors(shape: _Shape) -> Iterator[tuple[str, tuple[int, ...], float, float | Array]]:
    """Name, size, mean and standard deviation of every tensor.

    Scales: layers add to the residual stream much more than the embedding put there, and attention is peaked, so
    that the next token hangs on more than the last one (else greedy output runs into a short cycle).
    """
    hidden, inner = shape.hidden, shape.intermediate
    q_size, kv_size = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    qk_norm = shape.family == "qwen3"
    output_bias = shape.attention_bias and shape.family in ("llama", "qwen3")
    qkv_bias = output_bias or shape.family == "qwen2"
    mlp_bias = shape.mlp_bias and shape.family == "llama"

    def linear(
        name: str, size: int, fan_in: int, gain: float, bias: bool
    ) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
        yield f"{name}.weight", (size, fan_in), 0.0, gain * fan_in**-0.5
        if bias:
            yield f"{name}.bias", (size,), 0.0, 0.2

    rows = _LOGIT_SCALE * hidden**-0.5 * _row_scales(shape.vocab)
    yield "model.embed_tokens.weight", (shape.vocab, hidden), 0.0, rows
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,), 1.0, 0.1
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,), 1.0, 0.1
        for part, size, gain in (("q", q_size, 1.6), ("k", kv_size, 1.6), ("v", kv_size, 1.0)):
            yield from linear(f"{prefix}.self_attn.{part}_proj", size, hidden, gain, qkv_bias)
        yield from linear(f"{prefix}.self_attn.o_proj", hidden, q_size, 2.0, output_bias)
        if qk_norm:
            yield f"{prefix}.self_attn.q_norm.weight", (shape.head_dim,), 1.6, 0.1
            yield f"{prefix}.self_attn.k_norm.weight", (shape.head_dim,), 1.6, 0.1
        for part in ("gate", "up"):
            yield from linear(f"{prefix}.mlp.{part}_proj", inner, hidden, 1.0, mlp_bias)
        yield from linear(f"{prefix}.mlp.down_proj", hidden, inner, 2.0, mlp_bias)
    yield "model.norm.weight", (hidden,), 1.0, 0.1
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, hidden), 0.0, rows


def _row_scales(vocab: int) -> Array:
    """[vocab, 1]: special tokens hardly ever come out, bytes that are no ASCII character seldom."""
    scales = np.ones((vocab, 1), dtype=np.float32)
    scales[: len(SPECIAL_TOKENS)] = 0.05
    for token, character in enumerate(BYTE_CHARACTERS, start=len(SPECIAL_TOKENS)):
        if not character.isascii() and character not in _SPACE_AND_NEWLINE:
            scales[token] = 0.5
    return scales


def _write_weights(folder: Path, weights: dict[str, Array], dtype: str, shards: int) -> None:
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", weights, dtype)
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weight for i, (name, weight) in enumerate(weights.items()) if i * shards // len(weights) == shard}
        _write_safetensors(folder / file, part, dtype)
        weight_map.update(dict.fromkeys(part, file))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_safetensors(file: Path, weights: Mapping[str, Array], dtype: str) -> None:
    """The safetensors format: length of the header, JSON header padded to 8 bytes, little-endian data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, weight in weights.items():
        parts.append(_stored(weight, dtype))
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": _STORED_NAMES[dtype], "shape": weight.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(b"".join((struct.pack("<Q", len(text)), text, *parts)))


def _stored(weight: Array, dtype: str) -> bytes:
    if dtype == "bfloat16":  # the upper half of a float32, rounded to even
        bits = weight.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return weight.astype({"float32": "<f4", "float16": "<f2"}[dtype]).tobytes()


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
