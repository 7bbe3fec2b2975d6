"""Tiny random checkpoints of every native family, made from the real config classes of `transformers`."""

from __future__ import annotations

import copy
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tools.models_table.tiny import randomize, tiny_model

VOCAB = 160
_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "eos_token_id": 1, "bos_token_id": 0,
    "pad_token_id": 2,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_LATENT = {
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 32, "v_head_dim": 24, "num_key_value_heads": 4,
    "head_dim": 32,
}  # fmt: skip
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}  # fmt: skip
_GRANITE_4 = {
    "num_hidden_layers": 3, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 16, "attention_multiplier": 0.3,
    "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 2.0, "shared_intermediate_size": 80,
    "tie_word_embeddings": True,
}  # fmt: skip


def _longrope(pairs: int) -> dict[str, Any]:
    return {
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4,
            "short_factor": [1.0 + 0.1 * i for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)],
        },
    }  # fmt: skip


# Model type and what its config has beside the sizes above.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3": ("llama", {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 20}),
    "ministral": ("ministral", {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}),
    "ministral 3": ("ministral3", {"rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.3}}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "phi 3": ("phi3", {"sliding_window": 33, "num_key_value_heads": 4}),
    "phi 4 mini": (
        "phi3",
        {**_longrope(6), "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 2.0, "attention_multiplier": 0.4,
            "tie_word_embeddings": True,
        },
    ),
    "olmo 2": ("olmo2", {}),
    "olmo 3": ("olmo3", {"num_hidden_layers": 4, "sliding_window": 20, "rope_parameters": {
        "full_attention": _YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "glm 4": ("glm4", {}),
    "nemotron": ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "gemma 2": ("gemma2", {"sliding_window": 20, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 2.0}),
    "gemma 3": ("gemma3_text", {"num_hidden_layers": 6, "sliding_window": 20, "query_pre_attn_scalar": 10}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "cohere with norms": ("cohere", {"use_qk_norm": True}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen2 moe": (
        "qwen2_moe",
        {
            "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_hidden_layers": 3,
            "shared_expert_intermediate_size": 80, "mlp_only_layers": [1],
        },
    ),
    "qwen3 moe": (
        "qwen3_moe",
        {
            "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True,
            "num_hidden_layers": 3, "decoder_sparse_step": 2,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 20, "swiglu_limit": 1.5,
            "rope_parameters": {**_YARN, "truncate": False},
        },
    ),
    "llama 4": (
        "llama4_text",
        {
            "num_local_experts": 4, "num_hidden_layers": 4, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 2,
            "attention_chunk_size": 24, "floor_scale": 16, "attn_scale": 0.3, "intermediate_size_mlp": 80,
        },
    ),
    "glm 4.5": (
        "glm4_moe",
        {
            "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "n_group": 4, "topk_group": 2,
            "routed_scaling_factor": 1.5, "use_qk_norm": True, "attention_bias": True, "num_hidden_layers": 3,
        },
    ),
    "gemma": ("gemma", {"hidden_act": "gelu_pytorch_tanh"}),
    "glm": ("glm", {}),
    "smollm 3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "seed-oss": ("seed_oss", {"attention_out_bias": True}),
    "arcee": ("arcee", {"mlp_bias": True}),
    "ernie 4.5": ("ernie4_5", {"use_bias": True}),
    "starcoder 2": ("starcoder2", {"sliding_window": 20}),
    "stablelm": ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "helium": ("helium", {}),
    "exaone 4": ("exaone4", {"num_hidden_layers": 4, "sliding_window": 20}),
    "exaone 4 small": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "olmoe": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 2}),
    "deepseek v2": (
        "deepseek_v2",
        {
            **_LATENT, "q_lora_rank": None, "n_routed_experts": 8, "num_experts_per_tok": 3,
            "moe_intermediate_size": 48, "n_group": 4, "topk_group": 2,
            "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 1, "n_shared_experts": 2,
        },
    ),
    "glm 4.7 flash": (
        "glm4_moe_lite",
        {
            **_LATENT, "q_lora_rank": 40, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
            "mlp_layer_types": ["sparse", "dense"],
        },
    ),
    "youtu": ("youtu", {**_LATENT, "q_lora_rank": None, "tie_word_embeddings": False}),
    "deepseek v3": (
        "deepseek_v3",
        {
            **_LATENT, "q_lora_rank": 40, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
            "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
            "rope_parameters": {**_YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        },
    ),
    "lfm 2": (
        "lfm2",
        {
            "num_hidden_layers": 5, "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
            "block_multiple_of": 32, "conv_bias": True, "conv_L_cache": 4,
        },
    ),
    "bamba": (
        "bamba",
        {
            "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_n_groups": 2,
            "mamba_d_state": 16, "mamba_d_head": "auto",
        },
    ),
    "lfm 2 moe": (
        "lfm2_moe",
        {
            "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_experts": 6,
            "num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_dense_layers": 1, "routed_scaling_factor": 1.5,
        },
    ),
    "granite 4": (
        "granitemoehybrid",
        {
            **_GRANITE_4, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 6,
            "num_experts_per_tok": 2,
        },
    ),
    "granite 4 dense": (
        "granitemoehybrid",
        {
            **_GRANITE_4, "layer_types": ["mamba", "attention", "attention"], "num_local_experts": 0,
            "position_embedding_type": "rope",
        },
    ),
    "qwen3 next": (
        "qwen3_next",
        {
            **_DELTA, "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80, "mlp_only_layers": [1],
        },
    ),
    "qwen 3.5": (
        "qwen3_5_text",
        {**_DELTA, "linear_value_head_dim": 32, "layer_types": ["full_attention", "linear_attention"]},
    ),
    "qwen 3.5 moe": (
        "qwen3_5_moe_text",
        {
            **_DELTA, "layer_types": ["linear_attention", "full_attention"], "num_experts": 6, "num_experts_per_tok": 2,
            "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80,
        },
    ),
    "kimi linear": (
        "kimi_linear",
        {
            **_LATENT, "q_lora_rank": None, "num_hidden_layers": 3, "linear_num_heads": 2, "linear_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_experts": 8,
            "num_experts_per_token": 3, "moe_intermediate_size": 48, "num_expert_group": 4, "topk_group": 2,
        },
    ),
    "nemotron h": (
        "nemotron_h",
        {
            "layers_block_type": ["linear_attention", "moe", "linear_attention", "full_attention", "mlp"],
            "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "n_routed_experts": 8,
            "num_experts_per_tok": 3, "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 80,
            "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5,
            "time_step_min": 1e-30,  # by which transformers bounds steps of prompts, and not those of single tokens
        },
    ),
    "olmo hybrid": (
        "olmo_hybrid",
        {
            **_DELTA, "num_hidden_layers": 3, "rope_parameters": {"rope_type": "default", "rope_theta": None},
            "linear_value_head_dim": 32,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "falcon h1": (
        "falcon_h1",
        {
            "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 16,
            "lm_head_multiplier": 0.7, "embedding_multiplier": 3.0, "mlp_multipliers": [0.6, 1.7],
            "key_multiplier": 0.5, "attention_out_multiplier": 1.5, "attention_in_multiplier": 0.8,
            "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.7], "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.6,
        },
    ),
    "jamba": (
        "jamba",
        {
            "num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 3,
            "expert_layer_offset": 2, "num_experts": 4, "mamba_d_state": 8,
        },
    ),
    "mamba": ("mamba", {"state_size": 8, "use_bias": True}),
    "falcon mamba": ("falcon_mamba", {"state_size": 8, "intermediate_size": 80, "tie_word_embeddings": False}),
    "mamba 2": ("mamba2", {"num_heads": 4, "head_dim": 32, "n_groups": 2, "state_size": 16}),
    "cohere 2": ("cohere2", {"num_hidden_layers": 4, "sliding_window": 20}),
}  # fmt: skip


class Checkpoint:
    """One checkpoint of a family in `folder`, and the model of `transformers` that it is of, in float32."""

    def __init__(self, folder: Path, name: str, **config: Any) -> None:
        model_type, fields = FAMILIES[name]
        made = AutoConfig.for_model(model_type, **{**_SIZES, **fields, **config})
        made._attn_implementation = "eager"  # the only one with soft caps and sinks
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(made).eval().requires_grad_(False)
        randomize(model)
        for weight_name, weight in model.named_parameters():
            if weight_name.endswith("A_log"):
                weight -= 3.0  # else states are forgotten within a few tokens
        self._save(folder, model)

    @classmethod
    def tiny(cls, folder: Path, model_type: str, **config: Any) -> Checkpoint:
        """Of any model type of `transformers`, with a head of its own: with that of its embedding it would repeat
        itself."""
        made = cls.__new__(cls)
        made._save(folder, tiny_model(model_type, tie_word_embeddings=False, **config))
        return made

    def _save(self, folder: Path, model: PreTrainedModel) -> None:
        self.folder, self.model, self.config = folder, model, model.config
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder)

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([tokens])).logits[0].float()

    @cached_property
    def half(self) -> torch.nn.Module:
        return copy.deepcopy(self.model).bfloat16()

    def greedy_along(self, prompt: tuple[int, ...], drawn: list[int]) -> list[int]:
        """What greedy decoding draws after `prompt` and each beginning of `drawn`: `drawn`, if that is greedy."""
        return self.logits([*prompt, *drawn[:-1]])[len(prompt) - 1 :].argmax(-1).tolist()

    def greedy(self, prompt: tuple[int, ...], n: int) -> list[int]:
        made = self.model.generate(torch.tensor([prompt]), max_new_tokens=n, do_sample=False, pad_token_id=2)
        return made[0, len(prompt) :].tolist()

    def change_config(self, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
        file = self.folder / "config.json"
        config = {**json.loads(file.read_text()), **change}
        file.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))

    def change_tensors(self, change) -> None:
        file = self.folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
