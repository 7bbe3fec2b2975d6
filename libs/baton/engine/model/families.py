"""The model families that the decoder knows, as data: what their checkpoints call things, and how they differ.

Read while a model is loaded. A family is what a config.json does not say: the names of its tensors, what its modelling
code takes for granted, and which keys it listens to. Adding one whose mathematics is here already is adding an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Names:
    """What a checkpoint calls its tensors; those of a layer stand under `layer`. None: the family has no such tensor.

    One name for several parts (`qkv`, `gate_up`): the checkpoint has them in one matrix, in that order. Those of latent
    attention stand from `q_down` to `kv_up`.
    """

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_down: str = "self_attn.q_a_proj"
    q_down_norm: str = "self_attn.q_a_layernorm"
    q_up: str = "self_attn.q_b_proj"
    q_whole: str = "self_attn.q_proj"
    kv_down: str = "self_attn.kv_a_proj_with_mqa"
    kv_norm: str = "self_attn.kv_a_layernorm"
    kv_up: str = "self_attn.kv_b_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What a checkpoint calls the tensors of a mixture of experts, under its layer; `{}` is the expert's number.

    Names of experts without a number: the checkpoint has all experts in one tensor, inputs before outputs.
    """

    router: str = "mlp.gate"
    correction: str | None = None
    gate_up: tuple[str, ...] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    down: str = "mlp.experts.{}.down_proj"
    shared_gate_up: tuple[str, ...] = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
    shared_down: str = "mlp.shared_expert.down_proj"
    shared_gate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How a family mixes experts. `*_key`: what its config.json calls a size; of several, any. A `bool | str` is as in
    Family."""

    names: ExpertNames = ExpertNames()
    experts_keys: tuple[str, ...] = ("num_experts", "num_local_experts")
    size_key: str = "moe_intermediate_size"
    dense_size_key: str = "intermediate_size"
    shared_size_key: str | None = None  # of the shared expert
    shared_count_key: str | None = None  # of shared experts, which are one, that many times as large
    # Which layers: all; step: each `decoder_sparse_step`th but `mlp_only_layers`; first: all after the
    # `first_k_dense_replace` first; listed: `moe_layers`, or each `interleave_moe_layer_step`th
    layers: str = "all"
    sigmoid: bool = False  # scores of their own instead of shares
    normalized: bool | str = "norm_topk_prob"
    group_judges: int = 0  # experts that a group is judged by; 0: there are no groups
    router_bias: bool = False
    expert_bias: bool = False
    interleaved: bool = False  # gate and up take turns in `gate_up`
    weighs_input: bool = False


@dataclass(frozen=True, slots=True)
class NormKind:
    """How a family normalizes. `centred`: by deviation from the mean (LayerNorm), else by root mean square.

    `plus_one`: stored weights are added to one. `wide`: the product with the weight is made in float32, then rounded.
    """

    centred: bool = False
    bias: bool = False
    plus_one: bool = False
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What distinguishes a family.

    `defaults` are what its code assumes where config.json is silent, and name the optional keys that it listens to at
    all: another family's multiplier means nothing to it. A `bool | str` is a fact, or the key that tells.
    """

    model_type: str
    names: Names = Names()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool | str = "attention_bias"
    output_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    # none; head: each head by itself; heads: so, with weights of its own; all: all heads together; unit: each head by
    # itself, without weights, where it rotates
    qk_norm: str = "none"
    norm: NormKind = NormKind()
    eps_key: str = "rms_norm_eps"
    activation_key: str = "hidden_act"
    gated: bool = True
    interleaved: bool | str = False  # rotates neighbouring dimensions
    embedding_scaled: bool = False  # by the square root of the hidden size
    parallel: bool = False  # attention and MLP work on the same input
    # never; always; pattern: all but each `sliding_window_pattern`th; chunks: layers that rotate see their chunk only;
    # and where `use_sliding_window` is on: qwen: from `max_window_layers` on; layer_types: as these say
    sliding: str = "never"
    local_rope: bool = False  # sliding layers rotate by `rope_local_base_freq` (else by `rope_theta`), unscaled
    rope_layers: str = "all"  # all; sliding; listed: `no_rope_layers`, or all but each `no_rope_layer_interval`th
    sinks: str | None = None  # name of the layer's attention sinks
    latent: bool = False  # multi-head latent attention
    mixture: Mixture | None = None


_LLAMA = Family(
    model_type="llama",
    defaults={"max_position_embeddings": 2048, "eos_token_id": 2, "mlp_bias": False},
    mlp_bias="mlp_bias",
)
_MISTRAL = Family(
    model_type="mistral",
    defaults={
        "max_position_embeddings": 131_072, "num_key_value_heads": 8, "eos_token_id": 2, "sliding_window": 4096,
    },
    qkv_bias=False,
    output_bias=False,
    sliding="always",
)  # fmt: skip
_QWEN2 = Family(
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

_QWEN_MOE = Mixture(layers="step")
_SHARED_EXPERTS = ExpertNames(
    shared_gate_up=("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
    shared_down="mlp.shared_experts.down_proj",
)
_DEEPSEEK_MOE = Mixture(
    names=replace(_SHARED_EXPERTS, correction="mlp.gate.e_score_correction_bias"),
    experts_keys=("n_routed_experts",),
    shared_count_key="n_shared_experts",
    layers="first",
    sigmoid=True,
    group_judges=2,
)

_DEEPSEEK_DEFAULTS = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "first_k_dense_replace": 0, "n_shared_experts": 2, "n_group": None, "topk_group": None,
    "routed_scaling_factor": 1.0,
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "MinistralForCausalLM": replace(
        _MISTRAL,
        model_type="ministral",
        defaults={**_MISTRAL.defaults, "sliding_window_pattern": None},
        sliding="pattern",
    ),
    "Ministral3ForCausalLM": replace(
        _MISTRAL,
        model_type="ministral3",
        defaults={
            **_MISTRAL.defaults, "max_position_embeddings": 262_144, "head_dim": 128, "rms_norm_eps": 1e-5,
            "sliding_window": None, "llama_4_scaling_beta": None,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": replace(
        _QWEN2,
        model_type="qwen3",
        defaults={**_QWEN2.defaults, "head_dim": 128},
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm="head",
    ),
    "MiMoForCausalLM": replace(_QWEN2, model_type="mimo"),
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
        _LLAMA,
        model_type="granite",
        defaults={
            **_LLAMA.defaults, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
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
    "Glm4ForCausalLM": Family(
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
    ),
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
    "MixtralForCausalLM": replace(
        _MISTRAL,
        model_type="mixtral",
        defaults={
            **_MISTRAL.defaults, "rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None,
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
        _QWEN2,
        model_type="qwen2_moe",
        defaults={
            **_QWEN2.defaults, "num_key_value_heads": 16, "qkv_bias": True, "decoder_sparse_step": 1,
            "mlp_only_layers": None, "norm_topk_prob": False, "num_experts_per_tok": 4,
        },
        qkv_bias="qkv_bias",
        sliding="layer_types",
        mixture=replace(
            _QWEN_MOE,
            names=ExpertNames(shared_gate="mlp.shared_expert_gate"),
            shared_size_key="shared_expert_intermediate_size",
        ),
    ),
    "Qwen3MoeForCausalLM": replace(
        _QWEN2,
        model_type="qwen3_moe",
        defaults={
            **_QWEN2.defaults, "num_key_value_heads": 4, "decoder_sparse_step": 1, "mlp_only_layers": None,
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
        mixture=_DEEPSEEK_MOE,
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
        defaults={**_DEEPSEEK_DEFAULTS, "max_position_embeddings": 2048, "eos_token_id": 2, "topk_method": "greedy"},
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
            **_DEEPSEEK_DEFAULTS, "max_position_embeddings": 4096, "eos_token_id": 1, "num_experts_per_tok": 8,
            "rope_interleave": True, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3,
            "n_shared_experts": 1, "n_group": 8, "topk_group": 4,
        },
        interleaved="rope_interleave",
        latent=True,
        mixture=_DEEPSEEK_MOE,
    ),
}  # fmt: skip
