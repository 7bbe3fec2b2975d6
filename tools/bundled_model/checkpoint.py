"""Checkpoint folders as Hugging Face lays them out: config, generation config and bf16 weights of a Llama.

Written by export, read back by evaluation, and by any engine that knows LlamaForCausalLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tools.bundled_model.model import Llama, ModelShape

_WEIGHTS = "model.safetensors"


def save_model(model: Llama, folder: Path, *, end_id: int, pad_id: int) -> None:
    """Write config.json, generation_config.json and model.safetensors in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(model.shape, end_id, pad_id))
    _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": end_id, "pad_token_id": pad_id})
    weights = {name: tensor.detach().cpu().bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(folder / _WEIGHTS), metadata={"format": "pt"})
    (folder / _WEIGHTS).chmod(0o644)  # safetensors makes files that only their owner reads


def load_model(folder: Path) -> Llama:
    """The model of a folder that `save_model` wrote, in float32 on the CPU."""
    raw = json.loads((folder / "config.json").read_text())
    shape = ModelShape(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw["num_key_value_heads"],
        head_dim=raw["head_dim"],
        context_tokens=raw["max_position_embeddings"],
        rope_theta=raw["rope_theta"],
        norm_eps=raw["rms_norm_eps"],
    )
    model = Llama(shape)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(str(folder / _WEIGHTS)).items()})
    return model.eval()


def _config(shape: ModelShape, end_id: int, pad_id: int) -> dict[str, Any]:
    """`rope_theta` is written twice: older readers look for it at the top, newer ones in `rope_parameters`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context_tokens,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "pad_token_id": pad_id,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
