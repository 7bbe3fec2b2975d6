"""What is read from config.json and generation_config.json, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from paged_rows import PagedModel, Row

from baton.core.errors import CheckpointError
from baton.engine.model.config import load_config
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)
BASE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN_MOE = {"num_experts": 16, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
DELTA = {"architectures": ["Qwen3_5ForCausalLM"], "layer_types": ["linear_attention", "attention", "mamba"]}
BLOCKS = {"architectures": ["NemotronHForCausalLM"]}
ROPES = {
    "theta": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn explicit": {**YARN, "attention_factor": 1.2, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "yarn mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn without original": {"rope_type": "yarn", "factor": 4.0},
}


def write(folder, generation: object = None, **fields: object) -> object:
    content = {key: value for key, value in {**BASE, **fields}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(content))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_blocks(tmp_path) -> None:
    """A layer is a block that mixes tokens with the MLP after it, if there is one."""
    pattern = load_config(write(tmp_path, **BLOCKS, hybrid_override_pattern="M-M*EM", n_groups=2))
    assert pattern.blocks == ((0, 1), (2, None), (3, 4), (5, None))
    assert (pattern.stateful, pattern.attending) == ((0, 1, 3), (2,))
    assert pattern.moe is not None
    assert pattern.moe.layers == {2}
    kinds = ["mamba", "mlp", "mamba", "attention", "moe", "mamba"]
    assert load_config(write(tmp_path, **BLOCKS, layers_block_type=kinds, n_groups=2)) == pattern


def test_kimi_linear_counts_layers_from_one(tmp_path) -> None:
    own = {"full_attn_layers": [2], "kda_layers": [1, 3], "num_heads": 4, "head_dim": 24, "short_conv_kernel_size": 3}
    raw = {"architectures": ["KimiLinearForCausalLM"], "linear_attn_config": own, "num_expert_group": 2, **QWEN_MOE}
    sizes = {"num_experts_per_token": 3, "model_max_length": 4096, "first_k_dense_replace": 2}
    kimi = load_config(write(tmp_path, **raw, **sizes))
    assert (kimi.stateful, kimi.attending, kimi.context_tokens) == ((0, 2), (1,), 4096)
    assert kimi.gated_delta is not None
    assert (kimi.gated_delta.key_heads, kimi.gated_delta.value_dim, kimi.gated_delta.width) == (4, 24, 3)
    assert kimi.moe is not None
    assert (kimi.moe.layers, kimi.moe.routing.active, kimi.moe.routing.groups) == ({2}, 3, 2)


def test_what_is_absent_means_what_the_family_says(tmp_path) -> None:
    llama = load_config(write(tmp_path, num_key_value_heads="absent"))
    assert (llama.kv_heads, llama.head_dim, llama.context_tokens, llama.ropes[0].theta) == (8, 8, 2048, 10000.0)
    assert llama.eos_token_ids == {2}
    qwen2 = load_config(write(tmp_path, architectures=["Qwen2ForCausalLM"], num_key_value_heads=2))
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.windows) == (True, False, (None,) * 3)
    assert qwen2.eos_token_ids == frozenset()
    qwen3 = load_config(write(tmp_path, architectures=["Qwen3ForCausalLM"], num_key_value_heads=None))
    assert (qwen3.head_dim, qwen3.kv_heads, qwen3.qk_norm) == (128, 8, "head")
    mistral = load_config(write(tmp_path, architectures=["MistralForCausalLM"]))
    assert mistral.windows == (4096,) * 3
    by_type = load_config(write(tmp_path, architectures="absent", model_type="mistral", sliding_window=None))
    assert by_type.architecture == "MistralForCausalLM"
    assert by_type.windows == (None,) * 3


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [3, 4]}, 5, {3, 4}),
        ({"eos_token_id": 3}, [5, 6], {3}),
        ({}, [5, 6], {5, 6}),
        (None, 5, {5}),
        (None, None, set()),
    ],
)
def test_eos(tmp_path, generation, config, expected) -> None:
    assert load_config(write(tmp_path, generation, eos_token_id=config)).eos_token_ids == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported are Llama"),
        ({"architectures": "absent", "model_type": "rwkv"}, "model_type 'rwkv' is not supported"),
        ({"hidden_size": "absent"}, "hidden_size is missing"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be a positive integer"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 8 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; supported are silu"),
        ({"architectures": ["OlmoeForCausalLM"], "clip_qkv": 8.0}, "clip_qkv is 8.0, which is not supported for Olmoe"),
        ({"architectures": ["MixtralForCausalLM"]}, "num_experts is missing"),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok is 3; there are 2 experts",
        ),
        (
            {"architectures": ["Qwen2MoeForCausalLM"], "use_sliding_window": True, **QWEN_MOE},
            "Qwen2MoeForCausalLM needs layer_types",
        ),
        (
            {"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 31},
            "kv_lora_rank is 31, qk_rope_head_dim 64; both must be even",
        ),
        (
            {
                "architectures": ["DeepseekV3ForCausalLM"],
                "n_routed_experts": 12,
                "first_k_dense_replace": 1,
                **QWEN_MOE,
            },
            "n_group is 8, topk_group 4",
        ),
        ({"rope_scaling": {"type": "spiral", "factor": 2}}, "rope type 'spiral' is not supported; supported are"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope needs short_factor, a list of positive numbers"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}},
            "longrope has factors for 1 pairs of dimensions; 4 are rotated",
        ),
        ({"rope_scaling": {"type": "linear"}}, "linear rope needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "linear rope needs factor, a positive number"),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": 1}}, "must be less than high_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer type; this architecture"),
        ({"rope_parameters": [1]}, "must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is set, which this architecture does not know"),
        ({"architectures": ["Glm4ForCausalLM"], "head_dim": 10}, "partial_rotary_factor 0.5 of head_dim 10 is no even"),
        ({"architectures": ["Glm4ForCausalLM"], "partial_rotary_factor": 1.5}, "must be between 0 and 1"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny', of the wrong kind"),
        ({"rope_theta": [1]}, "of the wrong kind"),
        ({"architectures": 5}, "of the wrong kind"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id is"),
        (
            {"architectures": ["MistralForCausalLM"], "layer_types": ["full_attention"] * 2 + ["sliding_attention"]},
            "layer_types mixes",
        ),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 3}, "use_sliding_window"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}, "for each of the 3 layers"),
        (
            {**DELTA, "linear_num_key_heads": 4, "linear_num_value_heads": 6},
            "linear_num_value_heads 6 is not a multiple of linear_num_key_heads 4",
        ),
        ({**DELTA, "linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim is 1; it must be at least 2"),
        ({**DELTA, "hidden_act": "gelu"}, "hidden_act is 'gelu'; gated deltas are supported with silu"),
        ({**DELTA, "layer_types": ["conv"] * 3}, "must name full_attention or linear_attention for each of the 3"),
        ({"architectures": ["Qwen3_5ForCausalLM"]}, "no layer attends"),
        ({**BLOCKS, "hybrid_override_pattern": "M-*--"}, "block 4 is an MLP after none that mixes tokens"),
        ({**BLOCKS, "hybrid_override_pattern": "M*X"}, "blocks of the kind 'X' are not supported"),
        ({**BLOCKS, "moe_latent_size": 8}, "moe_latent_size is 8, which is not supported for NemotronH"),
        ({"architectures": ["Lfm2MoeForCausalLM"], **QWEN_MOE}, "layer_types is missing"),
    ],
)
def test_refused(tmp_path, fields, message) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_config(write(tmp_path, **fields))
    assert str(tmp_path / "config.json") in caught.value.message


@pytest.mark.parametrize("style", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize("kind", ROPES)
def test_rope_equals_transformers(tmp_path, kind: str, style: str) -> None:
    from transformers import AutoModelForCausalLM

    if style == "transformers 4":
        scaling = {key.replace("rope_type", "type"): value for key, value in ROPES[kind].items()}
        fields = {"rope_theta": 5000.0, "rope_scaling": None if kind == "theta" else scaling, "rope_parameters": None}
    else:
        fields = {"rope_parameters": {"rope_theta": 5000.0, **ROPES[kind]}}
    make_checkpoint(tmp_path, max_position=256, config=fields, head_dim=32)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    tokens = torch.randint(6, 512, (250,), generator=torch.Generator().manual_seed(0)).tolist()
    runner = TorchModelRunner.load(tmp_path)
    ours = PagedModel(runner).step([(Row(tokens), 250)], all_logits=True)
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    assert runner.max_context_tokens == (1024 if kind == "yarn without original" else 256)
