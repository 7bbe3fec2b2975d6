"""Tiny random models of any architecture of `transformers`: what its config class takes for granted, shrunk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 160
CONTEXT_TOKENS = 512
LAYERS = 4
_MOST_WEIGHTS = 200_000_000

# Config keys and what they are set to. A key that a config has not is left out.
_VALUES: tuple[tuple[int, str], ...] = (
    (64, "hidden_size d_model n_embd emb_dim dim_model embedding_dim embedding_size word_embed_proj_dim "
         "input_embedding_size output_embedding_size attention_hidden_size lru_width d_embed hidden_size_global "
         "adapter_in_dim adapter_out_dim"),
    (96, "intermediate_size ffn_dim ffn_hidden_size n_inner dff d_inner dim_ff feed_forward_size encoder_ffn_dim "
         "decoder_ffn_dim intermediate_size_mlp dense_intermediate_size"),
    (48, "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
         "shared_experts_intermediate_size moe_shared_expert_intermediate_size"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers encoder_layers num_encoder_layers decoder_layers "
             "num_decoder_layers num_blocks"),
    (4, "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads"),
    (2, "num_key_value_heads swa_num_key_value_heads num_query_groups"),
    (16, "head_dim kv_channels d_kv dim_head d_head attention_head_size swa_head_dim"),
    (VOCAB, "vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    (CONTEXT_TOKENS, "max_position_embeddings n_positions n_ctx seq_length max_seq_len context_length "
                     "max_target_positions model_max_length"),
    (8, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk topk_group zero_expert_num"),
    (4, "n_group num_expert_group"),
    (20, "sliding_window window_size local_attention sliding_window_size attention_window_size"),
    (24, "attention_chunk_size qk_head_dim"),
    (32, "kv_lora_rank"),
    (40, "q_lora_rank"),
    (8, "rotary_dim qk_rope_head_dim laurel_rank time_step_rank mamba_dt_rank mamba_n_heads mamba_num_heads"),
    (16, "qk_nope_head_dim v_head_dim index_head_dim index_topk hidden_size_per_layer_input"),
    (16, "linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim mamba_d_state "
         "state_size ssm_state_size mamba_chunk_size chunk_size"),
    (4, "linear_num_value_heads linear_num_heads"),
    (16, "index_n_heads"),  # with few heads many tokens score 0, and which of these are chosen is left open
    (2, "linear_num_key_heads n_groups num_kv_shared_layers"),
    (128, "mamba_d_ssm"),
    (0, "bos_token_id"), (1, "eos_token_id"), (2, "pad_token_id"),
)  # fmt: skip
_SIZES = {key: value for value, keys in _VALUES for key in keys.split()}

# What single model types need beside: sizes that must fit each other, and patterns that four layers do not show.
_QWEN_SPARSE = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
                "indexer_compress_ratio": 4, "ple_embed_dim": 32, "ple_layer_ids": [1], "ngram_vocab_size_base": 500,
                "hc_lowrank": 16, "split_ngram_parts": 4, "make_ngram_vocab_size_divisible_by": 8}  # fmt: skip
_SHARING = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
_ANY_STEP = {"time_step_min": 1e-9}  # a least step is heeded for several tokens, and not for one
_SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 4},
    "dots3_note_audio_encoder": {"adapter_input_size": 64},
    "dots3_note_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma3n_text": _SHARING,
    "gemma4_text": {**_SHARING, "global_head_dim": 32},
    "gemma4_unified_text": {**_SHARING, "global_head_dim": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": _CONVOLUTIONS,
    "lfm2_moe": _CONVOLUTIONS,
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2, "index_block_size": 8,
                           "index_topk_blocks": 2, "index_n_heads": 4},
    "prophetnet": {"max_position_embeddings": 128},  # it makes tables of that size in each pass
    "nemotron_h": _ANY_STEP,
    "qwen4_exp_text": _QWEN_SPARSE,
    "reformer": {"axial_pos_embds": False, "num_buckets": 4, "hash_seed": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 9},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "use_shared_attention_adapter": False,
               **_ANY_STEP},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Numbers in a checkpoint that are no weights, but follow from the config, and from each other.
_COMPUTED = ("embed_scale", "slope_rate", "query_decay", "key_decay", "diagonal_decay")
# Types whose own classes need packages that are not here, and the types of their text parts.
_TEXT_PARTS = {"gemma3n": "gemma3n_text"}
# Keys that are not shrunk there, by the class's own rules.
_KEPT = {
    "zamba": ("attention_hidden_size", "attention_head_dim", "head_dim"),
    "zamba2": ("attention_hidden_size", "head_dim"),
}


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The config of a tiny model of that type. `changes` have the last word."""
    fields = _tiny_fields(AutoConfig.for_model(model_type), model_type)
    return AutoConfig.for_model(model_type, **{**fields, **changes})


def _tiny_fields(plain: PretrainedConfig, model_type: str) -> dict[str, Any]:
    """What to give the class of `plain` to make it tiny, its parts too."""
    parts = {
        name: _tiny_fields(part, part.model_type)
        for name in plain.sub_configs
        if isinstance(part := getattr(plain, name, None), PretrainedConfig)
    }
    known = {*plain.to_dict(), *plain.attribute_map} - {*parts}
    kept = {*plain.attribute_map, *_KEPT.get(model_type, ())}
    sizes = {key: value for key, value in _SIZES.items() if key in known and key not in kept}
    if "kv_lora_rank" in known:
        sizes |= {"num_key_value_heads": 4, "head_dim": 8}
    if "is_decoder" in known:
        sizes["is_decoder"] = True
    return {**sizes, **parts, **_SPECIAL.get(model_type, {})}


def tiny_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """A model of that type, or its text part, in float32 with random weights, the same each time. Raises ValueError if
    it is not tiny."""
    config = tiny_config(_TEXT_PARTS.get(model_type, model_type), **changes)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > _MOST_WEIGHTS:
        raise ValueError(f"{size / 1e6:.0f} million weights are not tiny")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    randomize(model)
    return model


def save(model: PreTrainedModel, folder: Path, model_type: str) -> None:
    """A checkpoint of that type in the folder, of whose text part `model` is, where that is in _TEXT_PARTS."""
    model.save_pretrained(folder)
    if model_type not in _TEXT_PARTS:
        return
    file = folder / "model.safetensors"
    tensors = {re.sub(r"^model\.", "model.language_model.", name): x for name, x in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    config = AutoConfig.for_model(model_type, text_config=model.config.to_dict()).to_dict()
    architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))


def randomize(model: torch.nn.Module) -> None:
    """Weights under which the next token hangs on many before it, and none is a matter of rounding."""
    kept = model.state_dict()  # what a checkpoint has; tables that a model makes itself stay as they are
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if name not in kept or not weight.is_floating_point() or name.endswith(_COMPUTED):
            continue
        noise = torch.randn_like(weight)
        if weight.dim() < 2 or "norm" in name:
            weight += 0.2 * noise
        else:
            gain = 3.0 if "embed" in name or "head" in name else 1.6
            weight.copy_(gain * weight.shape[-1] ** -0.5 * noise)
