"""A config.json that says little means what the family's own config class makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoConfig

from baton.engine.attention import Chunks, Window
from baton.engine.model.config import load_config
from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.families import FAMILIES
from baton.engine.model.family import MambaKeys

LAYERS = 8
SIZES = {
    "vocab_size": 100, "hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 32, "num_experts": 16, "num_local_experts": 16, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
# Keys without which no layer would attend, or sizes would not fit.
NEEDED = {
    "Mamba2ForCausalLM": {"num_heads": 8},
    "BambaForCausalLM": {"attn_layer_indices": [1, 5]},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 4},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"] * 4},
}
# What transformers 4 wrote, and wrote otherwise than transformers 5.
OLD = {
    "LlamaForCausalLM": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "Phi3ForCausalLM": {
        "rope_theta": 2e4, "partial_rotary_factor": 0.5, "max_position_embeddings": 4096,
    },
    "Glm4ForCausalLM": {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
    "NemotronForCausalLM": {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
    "Gemma2ForCausalLM": {"rope_theta": 2e4, "hidden_act": "relu", "cache_implementation": "hybrid"},
    "Gemma3ForCausalLM": {
        "rope_theta": 2e6, "rope_local_base_freq": 3e4, "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "Cohere2ForCausalLM": {"rope_theta": 2e4, "sliding_window_pattern": 2},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3},
    "Qwen3MoeForCausalLM": {"use_sliding_window": True, "sliding_window": 64, "attention_bias": True},
    "DeepseekV3ForCausalLM": {
        "rope_theta": 2e4,
        "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
}  # fmt: skip
MIXING, BOTH = ("conv", "mamba", "linear_attention"), "hybrid"  # kinds of layers that keep a state
CASES = [(name, {}) for name, family in FAMILIES.items() if family.model_type != "mimo"] + list(OLD.items())


@pytest.mark.parametrize(("architecture", "fields"), CASES, ids=[f"{n} {'old' if f else ''}" for n, f in CASES])
def test_what_is_not_said(tmp_path, architecture: str, fields: dict[str, Any]) -> None:
    family = FAMILIES[architecture]
    raw = {**SIZES, **NEEDED.get(architecture, {}), **fields, "architectures": [architecture]}
    if family.latent or architecture == "Glm4MoeForCausalLM":
        raw["n_routed_experts"] = 16
        raw["num_experts_per_tok"] = 4
    if architecture == "HeliumForCausalLM":  # its default, 20, divides few numbers of heads
        raw["num_key_value_heads"] = 4
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ours = load_config(tmp_path)
    theirs = AutoConfig.for_model(family.model_type, **json.loads(json.dumps(raw)))
    assert ours.norm_eps == getattr(theirs, family.eps_key)
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    eos = theirs.eos_token_id
    assert ours.eos_token_ids == set(eos if isinstance(eos, list) else [] if eos is None else [eos])
    if ours.attending and not family.latent:
        assert ours.kv_heads == (theirs.num_key_value_heads or 32)
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or 256 // 32)
    assert ours.qkv_bias == getattr(theirs, "attention_bias", getattr(theirs, str(family.qkv_bias), family.qkv_bias))
    named = kinds_of(theirs) or ["full_attention"] * LAYERS
    kinds = [named[block] for block, _ in ours.blocks]
    assert ours.stateful == tuple(layer for layer, kind in enumerate(kinds) if kind in (*MIXING, BOTH))
    assert ours.attending == tuple(layer for layer, kind in enumerate(kinds) if kind not in MIXING)
    delta = ours.gated_delta
    if delta is not None:
        names = ("num_heads", "num_heads", "head_dim", "head_dim")
        if not family.kimi_delta:
            names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
        sizes = tuple(getattr(theirs, f"linear_{name}") for name in names)
        assert (delta.key_heads, delta.value_heads, delta.key_dim, delta.value_dim) == sizes
        assert delta.width == theirs.linear_conv_kernel_dim
    assert_mixers_are_the_same(family.mamba_keys, ours, theirs)
    if not ours.attending:
        return
    assert ours.windows == tuple(window_of(theirs, layer) for layer in range(ours.layers))
    for layer, rope in enumerate(ours.ropes if family.rope_layers != "none" else ()):
        expected = theirs.rope_parameters
        if "full_attention" in expected:
            expected = expected[theirs.layer_types[layer]]
        assert rope.theta == expected["rope_theta"]
        assert rope.kind == expected["rope_type"]
        if rope.part:
            assert rope.part == expected.get("partial_rotary_factor", 1.0)
        if rope.kind in ("linear", "llama3"):
            assert rope.factor == expected["factor"]
    assert ours.context_tokens == max(theirs.max_position_embeddings, *(rope.context_tokens for rope in ours.ropes))


def assert_mixers_are_the_same(keys: MambaKeys, ours: DecoderConfig, theirs: Any) -> None:
    one, two = ours.mamba1, ours.mamba2
    if one is not None:
        inner = getattr(theirs, "intermediate_size", 0) if not ours.attending else 2 * theirs.hidden_size
        assert (one.inner, one.state, one.rank) == (inner, getattr(theirs, keys.state), getattr(theirs, keys.rank))
    if two is not None:
        sizes = (getattr(theirs, key) for key in (keys.heads, keys.head_dim, keys.groups, keys.state))
        assert (two.heads, two.head_dim, two.groups, two.state) == tuple(sizes)
        assert two.output_bias == getattr(theirs, keys.output_bias)
    for mixer in (one, two):
        if mixer is not None:
            told = (getattr(theirs, keys.width), getattr(theirs, keys.conv_bias), getattr(theirs, keys.bias))
            assert (mixer.width, mixer.conv_bias, mixer.bias) == told


def kinds_of(theirs: Any) -> list[str]:
    return getattr(theirs, "layer_types", None) or getattr(theirs, "layers_block_type", [])


def window_of(theirs: Any, layer: int) -> Window:
    kinds, size = getattr(theirs, "layer_types", None), getattr(theirs, "sliding_window", None)
    if kinds is None:
        return size or None
    if kinds[layer] == "chunked_attention":
        return Chunks(theirs.attention_chunk_size)
    return size if kinds[layer] == "sliding_attention" else None
