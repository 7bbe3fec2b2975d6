"""Families that mix experts, and those with latent attention, which do so too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.engine.model.families_dense import MISTRAL, QWEN2
from baton.engine.model.family import ExpertNames, Family, Mixture, Names, NormKind

_QWEN_MOE = Mixture(layers="step")
SHARED_QWEN_MOE = replace(
    _QWEN_MOE,
    names=ExpertNames(shared_gate="mlp.shared_expert_gate"),
    shared_size_key="shared_expert_intermediate_size",
)
_SHARED_EXPERTS = ExpertNames(
    shared_gate_up=("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    shared_down="mlp.shared_experts.down_proj",
)
DEEPSEEK_MOE = Mixture(
    names=replace(_SHARED_EXPERTS, correction="mlp.gate.e_score_correction_bias"),
    experts_keys=("n_routed_experts",),
    shared_count_key="n_shared_experts",
    layers="first",
    sigmoid=True,
    group_judges=2,
)

DEEPSEEK_DEFAULTS = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "first_k_dense_replace": 0, "n_shared_experts": 2, "n_group": None, "topk_group": None,
    "routed_scaling_factor": 1.0,
}  # fmt: skip

MIXED: Mapping[str, Family] = {
    "MixtralForCausalLM": replace(
        MISTRAL,
        model_type="mixtral",
        defaults={
            **MISTRAL.defaults, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None,
            "num_experts_per_tok": 2,
        },
        mixture=Mixture(
            names=ExpertNames(
                router="block_sparse_moe.gate",
                gate_up=("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3"),
                down="block_sparse_moe.experts.{}.w2",
            ),
            size_key="intermediate_size",
            normalized=True,
        ),
    ),
    "Qwen2MoeForCausalLM": replace(
        QWEN2,
        model_type="qwen2_moe",
        defaults={
            **QWEN2.defaults, "num_key_value_heads": 16, "qkv_bias": True, "decoder_sparse_step": 1,
            "mlp_only_layers": None, "norm_topk_prob": False, "num_experts_per_tok": 4,
        },
        qkv_bias="qkv_bias",
        sliding="layer_types",
        mixture=SHARED_QWEN_MOE,
    ),
    "Qwen3MoeForCausalLM": replace(
        QWEN2,
        model_type="qwen3_moe",
        defaults={
            **QWEN2.defaults, "num_key_value_heads": 4, "decoder_sparse_step": 1, "mlp_only_layers": None,
            "norm_topk_prob": False, "num_experts_per_tok": 8, "max_window_layers": 0,
        },
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm="head",
        mixture=_QWEN_MOE,
    ),
    "GptOssForCausalLM": Family(
        model_type="gpt_oss",
        defaults={
            "max_position_embeddings": 131_072, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
            "rope_theta": 150_000.0, "attention_bias": True, "sliding_window": 128, "sliding_window_pattern": 2,
            "num_experts_per_tok": 4, "swiglu_alpha": 1.702, "swiglu_limit": 7.0,
            "rope_parameters": {
                "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False,
            },
        },
        norm=NormKind(wide=True),
        sliding="pattern",
        sinks="self_attn.sinks",
        mixture=Mixture(
            names=ExpertNames(
                router="mlp.router", gate_up=("mlp.experts.gate_up_proj",), down="mlp.experts.down_proj"
            ),
            size_key="intermediate_size",
            normalized=True,
            router_bias=True,
            expert_bias=True,
            interleaved=True,
        ),
    ),
    "Glm4MoeForCausalLM": Family(
        model_type="glm4_moe",
        defaults={
            "max_position_embeddings": 131_072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "use_qk_norm": False,
            "partial_rotary_factor": 0.5, "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
        },
        output_bias=False,
        qk_norm="head",
        mixture=DEEPSEEK_MOE,
    ),
    "Llama4ForCausalLM": Family(
        model_type="llama4_text",
        names=Names(gate_up=("feed_forward.gate_proj", "feed_forward.up_proj"), down="feed_forward.down_proj"),
        defaults={
            "max_position_embeddings": 131_072, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0, "eos_token_id": 2, "attention_chunk_size": 8192, "no_rope_layers": None,
            "no_rope_layer_interval": 4, "use_qk_norm": True, "attn_temperature_tuning": True, "floor_scale": 8192,
            "attn_scale": 0.1, "moe_layers": None, "interleave_moe_layer_step": 1, "num_experts_per_tok": 1,
            "intermediate_size": 8192, "intermediate_size_mlp": 16_384, "num_local_experts": 16,
        },
        qk_norm="unit",
        interleaved=True,
        sliding="chunks",
        rope_layers="listed",
        mixture=Mixture(
            names=ExpertNames(
                router="feed_forward.router",
                gate_up=("feed_forward.experts.gate_up_proj",),
                down="feed_forward.experts.down_proj",
                shared_gate_up=("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
                shared_down="feed_forward.shared_expert.down_proj",
            ),
            size_key="intermediate_size",
            dense_size_key="intermediate_size_mlp",
            shared_size_key="intermediate_size",
            layers="listed",
            sigmoid=True,
            normalized=False,
            weighs_input=True,
        ),
    ),
    "DeepseekV2ForCausalLM": Family(
        model_type="deepseek_v2",
        defaults={**DEEPSEEK_DEFAULTS, "max_position_embeddings": 2048, "eos_token_id": 2, "topk_method": "greedy"},
        qkv_bias="attention_bias",
        interleaved=True,
        latent=True,
        mixture=Mixture(
            names=_SHARED_EXPERTS,
            experts_keys=("n_routed_experts",),
            shared_count_key="n_shared_experts",
            layers="first",
            group_judges=1,
            normalized=False,
        ),
    ),
    "DeepseekV3ForCausalLM": Family(
        model_type="deepseek_v3",
        defaults={
            **DEEPSEEK_DEFAULTS, "max_position_embeddings": 4096, "eos_token_id": 1, "num_experts_per_tok": 8,
            "rope_interleave": True, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3,
            "n_shared_experts": 1, "n_group": 8, "topk_group": 4,
        },
        interleaved="rope_interleave",
        latent=True,
        mixture=DEEPSEEK_MOE,
    ),
    "OlmoeForCausalLM": Family(
        model_type="olmoe",
        defaults={
            "max_position_embeddings": 4096, "eos_token_id": 50_279, "rms_norm_eps": 1e-5, "num_experts_per_tok": 8,
            "num_experts": 64, "norm_topk_prob": False,
        },
        qk_norm="all",
        mixture=Mixture(size_key="intermediate_size"),
        refused=("clip_qkv",),
    ),
    "Glm4MoeLiteForCausalLM": Family(
        model_type="glm4_moe_lite",
        defaults={
            **DEEPSEEK_DEFAULTS, "max_position_embeddings": 202_752, "eos_token_id": 1, "rms_norm_eps": 1e-5,
            "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256, "num_experts_per_tok": 4,
            "rope_interleave": True, "norm_topk_prob": True, "routed_scaling_factor": 1.8, "n_shared_experts": 1,
            "mlp_layer_types": None,
        },
        interleaved="rope_interleave",
        latent=True,
        mixture=replace(DEEPSEEK_MOE, layers="typed"),
    ),
    "YoutuForCausalLM": Family(
        model_type="youtu",
        defaults={
            **DEEPSEEK_DEFAULTS, "max_position_embeddings": 131_072, "eos_token_id": 128_001,
            "tie_word_embeddings": True, "rope_interleave": True,
        },
        interleaved="rope_interleave",
        latent=True,
    ),
}  # fmt: skip
