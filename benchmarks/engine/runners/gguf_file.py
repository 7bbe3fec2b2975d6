"""Writes a Llama or Qwen3 checkpoint folder as one GGUF file for llama.cpp: bf16 weights, no tokenizer.

llama.cpp rotates neighbouring elements of a Llama head together, Hugging Face checkpoints have the two halves of a
head apart: so the rows of Llama's query and key weights change places. Qwen3's stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint16]
_LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TENSORS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, file: Path) -> None:
    """Convert `folder` (one model.safetensors, bf16) into `file`, which appears whole or not at all."""
    config = json.loads((folder / "config.json").read_text())
    draft = file.with_suffix(".draft")
    writer = gguf.GGUFWriter(draft, config["model_type"])
    _write_config(writer, config)
    for name, words in _bf16_tensors(folder / "model.safetensors"):
        _write_tensor(writer, config, name, words)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.rename(file)


def _write_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _write_tensor(writer: gguf.GGUFWriter, config: dict[str, Any], name: str, words: Words) -> None:
    stem = name.removesuffix(".weight")
    if stem in _TENSORS:
        target = _TENSORS[stem]
    else:
        _, _, layer, part = stem.split(".", 3)
        target = f"blk.{layer}.{_LAYER_TENSORS[part]}"
        if config["model_type"] == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            words = _interleaved(words, words.shape[0] // config["head_dim"])
    if words.ndim == 1:
        wide = (words.astype(np.uint32) << 16).view(np.float32)
        writer.add_tensor(f"{target}.weight", wide)
    else:
        as_bytes = np.ascontiguousarray(words).view(np.uint8)
        writer.add_tensor(f"{target}.weight", as_bytes, raw_dtype=gguf.GGMLQuantizationType.BF16)


def _interleaved(words: Words, heads: int) -> Words:
    rows, width = words.shape
    halves: Words = words.reshape(heads, 2, rows // heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)


def _bf16_tensors(file: Path) -> Iterator[tuple[str, Words]]:
    """Tensors of a safetensors file as their bf16 words; numpy itself knows no bf16."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + size)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{name} is stored as {entry['dtype']}; BF16 is supported")
        start, end = entry["data_offsets"]
        yield name, np.frombuffer(data[start:end].tobytes(), dtype=np.uint16).reshape(entry["shape"])
