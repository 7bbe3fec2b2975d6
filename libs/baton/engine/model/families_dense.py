"""Families with an MLP in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from baton.engine.model.family import Family, Names, NormKind

LLAMA = Family(
    model_type="llama",
    defaults={"max_position_embeddings": 2048, "eos_token_id": 2, "mlp_bias": False},
    mlp_bias="mlp_bias",
)
MISTRAL = Family(
    model_type="mistral",
    defaults={
        "max_position_embeddings": 131_072, "num_key_value_heads": 8, "eos_token_id": 2, "sliding_window": 4096,
    },
    qkv_bias=False,
    output_bias=False,
    sliding="always",
)  # fmt: skip
QWEN2 = Family(
    model_type="qwen2",
    defaults={
        "max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28,
    },
    qkv_bias=True,
    output_bias=False,
    sliding="qwen",
)  # fmt: skip
_FOUR_NORMS = Names(
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_GEMMA2 = Family(
    model_type="gemma2",
    names=_FOUR_NORMS,
    defaults={
        "max_position_embeddings": 8192, "num_key_value_heads": 4, "head_dim": 256, "eos_token_id": 1,
        "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "sliding_window_pattern": 2, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    norm=NormKind(plus_one=True, wide=True),
    activation_key="hidden_activation",
    embedding_scaled=True,
    sliding="pattern",
    refused=("use_bidirectional_attention",),
)  # fmt: skip
_GEMMA3 = replace(
    _GEMMA2,
    model_type="gemma3_text",
    defaults={
        **{key: value for key, value in _GEMMA2.defaults.items() if key != "attn_logit_softcapping"},
        "max_position_embeddings": 131_072, "vocab_size": 262_208, "num_attention_heads": 8,
        "sliding_window_pattern": 6, "final_logit_softcapping": None, "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    qk_norm="head",
    local_rope=True,
)  # fmt: skip
_OLMO2 = Family(
    model_type="olmo2",
    names=replace(_FOUR_NORMS, attention_norm=None, mlp_norm=None),
    defaults={"max_position_embeddings": 2048, "eos_token_id": 50_279, "rms_norm_eps": 1e-5},
    qk_norm="all",
    norm=NormKind(wide=True),
)
_COHERE = Family(
    model_type="cohere",
    names=Names(mlp_norm=None),
    defaults={
        "max_position_embeddings": 8192, "eos_token_id": 255_001, "tie_word_embeddings": True, "logit_scale": 0.0625,
        "layer_norm_eps": 1e-5, "rope_theta": 500_000.0, "use_qk_norm": False,
    },
    norm=NormKind(centred=True, wide=True),
    eps_key="layer_norm_eps",
    qk_norm="heads",
    interleaved=True,
    parallel=True,
)  # fmt: skip

_GLM4 = Family(
    model_type="glm4",
    names=Names(
        gate_up=("mlp.gate_up_proj",),
        attention_post_norm="post_self_attn_layernorm",
        mlp_post_norm="post_mlp_layernorm",
    ),
    defaults={
        "max_position_embeddings": 131_072, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True,
        "rms_norm_eps": 1.5625e-7, "eos_token_id": (151_329, 151_336, 151_338), "partial_rotary_factor": 0.5,
    },
    output_bias=False,
    interleaved=True,
)  # fmt: skip

DENSE: Mapping[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MinistralForCausalLM": replace(
        MISTRAL,
        model_type="ministral",
        defaults={**MISTRAL.defaults, "sliding_window_pattern": None},
        sliding="pattern",
    ),
    "Ministral3ForCausalLM": replace(
        MISTRAL,
        model_type="ministral3",
        defaults={
            **MISTRAL.defaults, "max_position_embeddings": 262_144, "head_dim": 128, "rms_norm_eps": 1e-5,
            "sliding_window": None, "llama_4_scaling_beta": None,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": replace(
        QWEN2,
        model_type="qwen3",
        defaults={**QWEN2.defaults, "head_dim": 128},
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm="head",
    ),
    "MiMoForCausalLM": replace(QWEN2, model_type="mimo"),
    "Phi3ForCausalLM": Family(
        model_type="phi3",
        names=Names(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
        defaults={
            "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "eos_token_id": 32_000,
            "rms_norm_eps": 1e-5, "sliding_window": None, "partial_rotary_factor": 1.0,
        },
        qkv_bias=False,
        output_bias=False,
        sliding="always",
    ),
    "GraniteForCausalLM": replace(
        LLAMA,
        model_type="granite",
        defaults={
            **LLAMA.defaults, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
            "attention_multiplier": 1.0,
        },
    ),
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": replace(
        _OLMO2,
        model_type="olmo3",
        defaults={
            **_OLMO2.defaults, "rope_theta": 500_000.0, "sliding_window": 4096, "sliding_window_pattern": 4,
        },
        sliding="pattern",
        local_rope=True,
    ),
    "Glm4ForCausalLM": _GLM4,
    "NemotronForCausalLM": Family(
        model_type="nemotron",
        names=Names(gate_up=("mlp.up_proj",)),
        defaults={
            "max_position_embeddings": 4096, "eos_token_id": 3, "hidden_act": "relu2", "norm_eps": 1e-5,
            "partial_rotary_factor": 0.5, "mlp_bias": False,
        },
        mlp_bias="mlp_bias",
        norm=NormKind(centred=True, bias=True, plus_one=True, wide=True),
        eps_key="norm_eps",
        gated=False,
    ),
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "CohereForCausalLM": _COHERE,
    "Cohere2ForCausalLM": replace(
        _COHERE,
        model_type="cohere2",
        defaults={**_COHERE.defaults, "sliding_window": 4096, "sliding_window_pattern": 4, "rope_theta": 10_000.0},
        qk_norm="none",
        sliding="pattern",
        rope_layers="sliding",
    ),
    "GemmaForCausalLM": replace(
        _GEMMA2,
        model_type="gemma",
        names=Names(),
        defaults={
            "max_position_embeddings": 8192, "num_key_value_heads": 16, "head_dim": 256, "eos_token_id": 1,
            "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh",
        },
        activation_key="hidden_act",
        legacy_gelu=True,
        sliding="never",
    ),
    "GlmForCausalLM": replace(_GLM4, model_type="glm", names=Names(gate_up=("mlp.gate_up_proj",))),
    "SmolLM3ForCausalLM": Family(
        model_type="smollm3",
        defaults={
            "max_position_embeddings": 32_768, "num_key_value_heads": 4, "eos_token_id": 128_001, "mlp_bias": False,
            "tie_word_embeddings": True, "rope_theta": 2e6, "sliding_window": None, "no_rope_layers": None,
            "no_rope_layer_interval": 4,
        },
        mlp_bias="mlp_bias",
        sliding="layer_types",
        rope_layers="listed",
    ),
    "SeedOssForCausalLM": Family(
        model_type="seed_oss",
        defaults={
            "max_position_embeddings": 524_288, "num_key_value_heads": 8, "head_dim": 128, "eos_token_id": 2,
            "attention_bias": True, "attention_out_bias": False, "mlp_bias": False,
        },
        output_bias="attention_out_bias",
        mlp_bias="mlp_bias",
    ),
    "ArceeForCausalLM": Family(
        model_type="arcee",
        names=Names(gate_up=("mlp.up_proj",)),
        defaults={
            "max_position_embeddings": 4096, "eos_token_id": 128_001, "hidden_act": "relu2", "rms_norm_eps": 1e-5,
            "mlp_bias": False,
        },
        mlp_bias="mlp_bias",
        gated=False,
    ),
    "Ernie4_5ForCausalLM": Family(
        model_type="ernie4_5",
        defaults={
            "max_position_embeddings": 131_072, "num_key_value_heads": 2, "head_dim": 128, "eos_token_id": 2,
            "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, "use_bias": False,
        },
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        interleaved=True,
    ),
    "Starcoder2ForCausalLM": Family(
        model_type="starcoder2",
        names=Names(gate_up=("mlp.c_fc",), down="mlp.c_proj"),
        defaults={
            "max_position_embeddings": 4096, "num_key_value_heads": 2, "eos_token_id": 50_256,
            "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "tie_word_embeddings": True, "use_bias": True,
            "sliding_window": None,
        },
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        norm=NormKind(centred=True, bias=True, wide=True),
        eps_key="norm_epsilon",
        gated=False,
        sliding="always",
    ),
    "StableLmForCausalLM": Family(
        model_type="stablelm",
        defaults={
            "max_position_embeddings": 4096, "num_key_value_heads": 32, "eos_token_id": 0, "layer_norm_eps": 1e-5,
            "use_qkv_bias": False, "partial_rotary_factor": 0.25,
        },
        qkv_bias="use_qkv_bias",
        output_bias=False,
        norm=NormKind(centred=True, bias=True, wide=True),
        eps_key="layer_norm_eps",
        refused=("qk_layernorm", "use_parallel_residual"),
    ),
    "HeliumForCausalLM": Family(
        model_type="helium",
        defaults={
            "max_position_embeddings": 4096, "num_key_value_heads": 20, "head_dim": 128, "eos_token_id": 2,
            "rms_norm_eps": 1e-8, "rope_theta": 100_000.0, "mlp_bias": False,
        },
        output_bias=False,
        mlp_bias="mlp_bias",
        norm=NormKind(wide=True),
        interleaved=True,
    ),
    "Exaone4ForCausalLM": Family(
        model_type="exaone4",
        names=replace(_FOUR_NORMS, attention_norm=None, mlp_norm=None),
        defaults={
            "max_position_embeddings": 2048, "num_key_value_heads": 32, "eos_token_id": 2, "rms_norm_eps": 1e-5,
            "sliding_window": 4096, "sliding_window_pattern": 4,
        },
        qkv_bias=False,
        output_bias=False,
        qk_norm="head",
        sliding="pattern",
        rope_layers="sliding_if_any",
    ),
}  # fmt: skip
