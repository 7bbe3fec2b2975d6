"""Families most of whose layers are gated deltas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.engine.model.families_dense import DENSE
from baton.engine.model.families_mixed import DEEPSEEK_DEFAULTS, DEEPSEEK_MOE, SHARED_QWEN_MOE
from baton.engine.model.family import ExpertNames, Family, Names, NormKind

_QWEN3_5 = Family(
    model_type="qwen3_5_text",
    defaults={
        "max_position_embeddings": 32_768, "num_key_value_heads": 4, "head_dim": 256, "partial_rotary_factor": 0.25,
        "layer_types": None, "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    },
    qk_norm="head",
    norm=NormKind(plus_one=True, wide=True),
    gated_delta=True,
    gated_attention=True,
)  # fmt: skip
DELTA: Mapping[str, Family] = {
    "Qwen3NextForCausalLM": replace(
        _QWEN3_5,
        model_type="qwen3_next",
        names=Names(delta_in=("linear_attn.in_proj_qkvz",), delta_rates=("linear_attn.in_proj_ba",)),
        defaults={
            **_QWEN3_5.defaults, "num_key_value_heads": 2, "num_experts_per_tok": 10, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": None,
        },
        mixture=SHARED_QWEN_MOE,
    ),
    "OlmoHybridForCausalLM": replace(
        DENSE["Olmo2ForCausalLM"],
        model_type="olmo_hybrid",
        # Other names are those that transformers 5 saves.
        names=replace(
            DENSE["Olmo2ForCausalLM"].names, otherwise={"post_attention_layernorm": "feedforward_layer_norm"}
        ),
        stateful_names=Names(
            attention_norm="attention_layer_norm",
            mlp_norm="feedforward_layer_norm",
            delta_in=tuple(f"linear_attn.{each}_proj" for each in "qkvg"),
            delta_rates=("linear_attn.b_proj", "linear_attn.a_proj"),
            delta_conv=tuple(f"linear_attn.{each}_conv1d" for each in "qkv"),
            delta_norm="linear_attn.o_norm",
            delta_out="linear_attn.o_proj",
        ),
        defaults={
            "max_position_embeddings": 65_536, "eos_token_id": 100_257, "layer_types": None,
            "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_allow_neg_eigval": True,
            "linear_norm_eps": 1e-5,
        },
        rope_layers="based",
        gated_delta=True,
    ),
    "KimiLinearForCausalLM": Family(
        model_type="kimi_linear",
        names=Names(
            mixer="self_attn",
            delta_in=tuple(f"self_attn.{each}_proj" for each in "qkv"),
            delta_conv=tuple(f"self_attn.{each}_conv1d" for each in "qkv"),
            delta_norm="self_attn.o_norm",
            delta_out="self_attn.o_proj",
            otherwise={f"mlp.{each}_proj": f"block_sparse_moe.{each}_proj" for each in ("gate", "up", "down")},
        ),
        defaults={
            **DEEPSEEK_DEFAULTS, "max_position_embeddings": 1_048_576,
            "eos_token_id": 163_586, "rms_norm_eps": 1e-5, "q_lora_rank": None, "num_experts_per_tok": 8,
            "norm_topk_prob": True, "routed_scaling_factor": 2.446, "n_shared_experts": 1, "n_group": 1,
            "topk_group": 1, "layer_types": None, "mlp_layer_types": None, "num_experts": 256,
        },
        renamed={
            "max_position_embeddings": "model_max_length", "norm_topk_prob": "moe_renormalize",
            "n_group": "num_expert_group", "num_experts_per_tok": "num_experts_per_token",
            "n_shared_experts": "num_shared_experts",
        },
        latent=True,
        rope_layers="none",
        gated_delta=True,
        kimi_delta=True,
        mixture=replace(
            DEEPSEEK_MOE,
            names=ExpertNames(
                router="block_sparse_moe.gate",
                correction="block_sparse_moe.gate.e_score_correction_bias",
                gate_up=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
                down="block_sparse_moe.experts.{}.w2",
                shared_gate_up=(
                    "block_sparse_moe.shared_experts.gate_proj", "block_sparse_moe.shared_experts.up_proj",
                ),
                shared_down="block_sparse_moe.shared_experts.down_proj",
            ),
            experts_keys=("num_experts", "num_local_experts"),
            layers="typed",
        ),
    ),
    "Qwen3_5ForCausalLM": _QWEN3_5,
    "Qwen3_5MoeForCausalLM": replace(
        _QWEN3_5,
        model_type="qwen3_5_moe_text",
        defaults={**_QWEN3_5.defaults, "num_key_value_heads": 2, "num_experts_per_tok": 8},
        mixture=replace(
            SHARED_QWEN_MOE,
            names=replace(SHARED_QWEN_MOE.names, whole=("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
            dense_size_key="moe_intermediate_size",
            layers="all",
            normalized=True,
        ),
    ),
}  # fmt: skip
