"""Families of which some layers keep a state of constant size instead of K and V."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.engine.model.families_dense import DENSE
from baton.engine.model.families_mamba import BAMBA_NAMES
from baton.engine.model.family import ExpertNames, Family, MambaKeys, Mixture, Names

LFM2 = Family(
    model_type="lfm2",
    names=Names(
        final_norm="model.embedding_norm",
        q_norm="self_attn.q_layernorm",
        k_norm="self_attn.k_layernorm",
        output="self_attn.out_proj",
        gate_up=("feed_forward.w1", "feed_forward.w3"),
        down="feed_forward.w2",
        attention_norm="operator_norm",
        mlp_norm="ffn_norm",
    ),
    defaults={
        "max_position_embeddings": 128_000, "num_key_value_heads": 8, "eos_token_id": 2, "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True, "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True, "tie_embedding": True,
        "full_attn_idxs": None, "layer_types": None,
    },
    qkv_bias=False,
    output_bias=False,
    qk_norm="head",
    eps_key="norm_eps",
    convolves=True,
    adjusts_mlp=True,
)  # fmt: skip
_ADJUSTING = ("block_multiple_of", "block_ffn_dim_multiplier", "block_auto_adjust_ff_dim", "full_attn_idxs")
LFM2_MOE = replace(
    LFM2,
    model_type="lfm2_moe",
    defaults={
        **{key: value for key, value in LFM2.defaults.items() if key not in _ADJUSTING}, "num_dense_layers": 2,
        "num_experts_per_tok": 4, "use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    },
    adjusts_mlp=False,
    mixture=Mixture(
        names=ExpertNames(
            router="feed_forward.gate",
            correction="feed_forward.expert_bias",
            gate_up=("feed_forward.experts.{}.w1", "feed_forward.experts.{}.w3"),
            down="feed_forward.experts.{}.w2",
        ),
        layers="first",
        dense_count_key="num_dense_layers",
        sigmoid=True,
        corrected="use_expert_bias",
        least_sum=1e-6,
    ),
)  # fmt: skip
BAMBA = Family(
    model_type="bamba",
    names=BAMBA_NAMES,
    defaults={
        "max_position_embeddings": 262_144, "num_key_value_heads": 8, "eos_token_id": 2, "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5, "mlp_bias": False, "attn_layer_indices": None, "mamba_n_heads": 128,
        "mamba_d_head": "auto", "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2,
        "mamba_conv_bias": True, "mamba_proj_bias": False, "time_step_limit": None,
    },
    mlp_bias="mlp_bias",
    mamba2=True,
)  # fmt: skip
GRANITE_HYBRID = replace(
    DENSE["GraniteForCausalLM"],
    model_type="granitemoehybrid",
    names=Names(
        gate_up=("shared_mlp.input_linear",),
        down="shared_mlp.output_linear",
        conv_in="mamba.in_proj",
        conv="mamba.conv1d",
        conv_out="mamba.out_proj",
    ),
    defaults={
        **DENSE["GraniteForCausalLM"].defaults, "layer_types": None, "position_embedding_type": None,
        "num_experts_per_tok": 2, "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False,
        "time_step_limit": None, "shared_intermediate_size": 1024,
    },
    mlp_bias=False,
    mamba2=True,
    rope_layers="asked",
    mixture=Mixture(
        names=ExpertNames(
            router="block_sparse_moe.router.layer",
            gate_up=(),
            whole=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
            shared_gate_up=("shared_mlp.input_linear",),
            shared_down="shared_mlp.output_linear",
        ),
        experts_keys=("num_local_experts",),
        size_key="intermediate_size",
        dense_size_key="shared_intermediate_size",
        shared_size_key="shared_intermediate_size",
        normalized=True,
    ),
)  # fmt: skip
NEMOTRON_H = Family(
    model_type="nemotron_h",
    names=Names(
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        layer="backbone.layers.{}",
        qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
        output="mixer.o_proj",
        gate_up=("mixer.up_proj",),
        down="mixer.down_proj",
        mixer="mixer",
        conv_in="mixer.in_proj",
        conv="mixer.conv1d",
        conv_out="mixer.out_proj",
        attention_norm="norm",
        mlp_norm="norm",
    ),
    defaults={
        "max_position_embeddings": 4096, "num_key_value_heads": 8, "head_dim": 128, "eos_token_id": 2,
        "layer_norm_epsilon": 1e-5, "mlp_hidden_act": "relu2", "layer_types": None,
        "mlp_layer_types": None, "mamba_hidden_act": "silu", "mamba_num_heads": 128, "mamba_head_dim": 64,
        "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4, "use_conv_bias": True, "use_bias": False,
        "time_step_limit": None, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
    qkv_bias=False,
    output_bias=False,
    eps_key="layer_norm_epsilon",
    activation_key="mlp_hidden_act",
    gated=False,
    rope_layers="none",
    mamba2=True,
    mamba_keys=MambaKeys(
        heads="mamba_num_heads",
        head_dim="mamba_head_dim",
        groups="n_groups",
        state="ssm_state_size",
        width="conv_kernel",
        expand=None,
        conv_bias="use_conv_bias",
        bias="use_bias",
        output_bias="use_bias",
    ),
    blocks=True,
    mixture=Mixture(
        names=ExpertNames(
            router="mixer.gate",
            correction="mixer.gate.e_score_correction_bias",
            gate_up=("mixer.experts.{}.up_proj",),
            down="mixer.experts.{}.down_proj",
            shared_gate_up=("mixer.shared_experts.up_proj",),
            shared_down="mixer.shared_experts.down_proj",
        ),
        experts_keys=("n_routed_experts",),
        shared_size_key="moe_shared_expert_intermediate_size",
        layers="typed",
        sigmoid=True,
        group_judges=2,
    ),
    refused=("moe_latent_size", "mlp_bias"),
)  # fmt: skip
HYBRID: Mapping[str, Family] = {
    "Lfm2ForCausalLM": LFM2,
    "Lfm2MoeForCausalLM": LFM2_MOE,
    "BambaForCausalLM": BAMBA,
    "GraniteMoeHybridForCausalLM": GRANITE_HYBRID,
    "NemotronHForCausalLM": NEMOTRON_H,
}
