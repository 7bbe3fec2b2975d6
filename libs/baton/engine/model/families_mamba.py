"""Mamba and Mamba2 by themselves, and families in which their mixers stand beside or among layers that attend in
other ways than Bamba's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.engine.model.family import ExpertNames, Family, MambaKeys, Mixture, Names

NO_LIMIT = 1 << 20  # positions, of families that have none

BAMBA_NAMES = Names(
    final_norm="model.final_layernorm",
    gate_up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
    mlp_norm="pre_ff_layernorm",
    conv_in="mamba.in_proj",
    conv="mamba.conv1d",
    conv_out="mamba.out_proj",
)
FALCON_H1 = Family(
    model_type="falcon_h1",
    names=BAMBA_NAMES,
    defaults={
        "max_position_embeddings": 8192, "num_key_value_heads": 8, "eos_token_id": 2, "rms_norm_eps": 1e-5,
        "mlp_bias": False, "mamba_d_ssm": 1024, "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False,
        "mamba_norm_before_gate": True, "mamba_rms_norm": False, "time_step_limit": None, "projectors_bias": False,
        "lm_head_multiplier": 1.0, "embedding_multiplier": 1.0, "mlp_multipliers": None, "key_multiplier": 1.0,
        "attention_out_multiplier": 1.0, "attention_in_multiplier": 1.0, "ssm_multipliers": None,
        "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
    },
    mlp_bias="mlp_bias",
    mamba2=True,
    mixes="beside",
    mamba_keys=MambaKeys(inner="mamba_d_ssm", output_bias="projectors_bias"),
    multiplied=True,
)  # fmt: skip
JAMBA = Family(
    model_type="jamba",
    names=BAMBA_NAMES,
    defaults={
        "max_position_embeddings": 262_144, "num_key_value_heads": 8, "eos_token_id": 2, "num_experts_per_tok": 2,
        "num_experts": 16, "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 8,
        "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": "auto",
        "mamba_conv_bias": True, "mamba_proj_bias": False,
    },
    qkv_bias=False,
    output_bias=False,
    rope_layers="none",
    mamba1=True,
    mixes="period",
    mixer_eps_key="rms_norm_eps",
    mixer_norm_weights=True,
    mixture=Mixture(
        names=ExpertNames(
            router="feed_forward.router",
            gate_up=("feed_forward.experts.{}.gate_proj", "feed_forward.experts.{}.up_proj"),
            down="feed_forward.experts.{}.down_proj",
        ),
        experts_keys=("num_experts",),
        size_key="intermediate_size",
        layers="period",
        normalized=False,
    ),
)  # fmt: skip
MAMBA = Family(
    model_type="mamba",
    names=Names(
        embedding="backbone.embeddings",
        final_norm="backbone.norm_f",
        layer="backbone.layers.{}",
        attention_norm="norm",
        mlp_norm=None,
        mixer="mixer",
        conv_in="mixer.in_proj",
        conv="mixer.conv1d",
        conv_out="mixer.out_proj",
    ),
    defaults={
        "max_position_embeddings": NO_LIMIT, "eos_token_id": 0, "tie_word_embeddings": True, "state_size": 16,
        "layer_norm_epsilon": 1e-5, "expand": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
        "residual_in_fp32": True, "time_step_rank": "auto", "intermediate_size": None,
    },
    qkv_bias=False,
    output_bias=False,
    eps_key="layer_norm_epsilon",
    has_mlp=False,
    wide_residual="residual_in_fp32",
    rope_layers="none",
    mamba1=True,
    mixes="alone",
    mamba_keys=MambaKeys(
        heads="num_heads", head_dim="head_dim", groups="n_groups", state="state_size", width="conv_kernel",
        expand="expand", inner="intermediate_size", rank="time_step_rank", conv_bias="use_conv_bias", bias="use_bias",
        output_bias="use_bias",
    ),
)  # fmt: skip
FALCON_MAMBA = replace(
    MAMBA,
    model_type="falcon_mamba",
    defaults={**MAMBA.defaults, "mixer_rms_eps": 1e-6},
    mixer_eps_key="mixer_rms_eps",
)
MAMBA2 = replace(
    MAMBA,
    model_type="mamba2",
    defaults={
        **MAMBA.defaults, "eos_token_id": 2, "tie_word_embeddings": False, "num_heads": 128, "head_dim": 64,
        "state_size": 128, "n_groups": 8, "time_step_limit": None,
    },
    mamba1=False,
    mamba2=True,
    mamba_keys=replace(MAMBA.mamba_keys, inner=None),
)  # fmt: skip
MAMBAS: Mapping[str, Family] = {
    "FalconH1ForCausalLM": FALCON_H1,
    "JambaForCausalLM": JAMBA,
    "MambaForCausalLM": MAMBA,
    "FalconMambaForCausalLM": FALCON_MAMBA,
    "Mamba2ForCausalLM": MAMBA2,
}
