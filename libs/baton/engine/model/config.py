"""A decoder's description, read from a checkpoint's config.json and generation_config.json.

Values that a config.json leaves out mean what the family's modelling code takes them to mean
(baton.engine.model.families).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.core.errors import CheckpointError
from baton.engine.model.block_config import in_layers
from baton.engine.model.decoder_config import DecoderConfig, LatentConfig
from baton.engine.model.delta_config import gated_delta_of, kimi_keys
from baton.engine.model.families import FAMILIES
from baton.engine.model.family import Family
from baton.engine.model.fields import Fields
from baton.engine.model.files import read_config, read_json
from baton.engine.model.hybrid_config import conv_of
from baton.engine.model.layer_rules import query_scaling_of, ropes_of, windows_of
from baton.engine.model.mamba_config import (
    mamba1_of,
    mamba2_of,
    multipliers_of,
)
from baton.engine.model.moe_config import moe_of
from baton.engine.model.rope import Rope

SUPPORTED_ARCHITECTURES = tuple(FAMILIES)
_OUTER_KEYS = ("eos_token_id", "tie_word_embeddings", "dtype", "torch_dtype", "quantization_config")
CAUSAL, CLASSIFIER, HEADLESS = "ForCausalLM", "ForSequenceClassification", "Model"  # ends of architectures' names
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "relu": "relu", "relu2": "relu2",
}  # fmt: skip


class NotNative(CheckpointError):
    """An architecture, or a variant of one, that the decoder does not know. It may be fine otherwise."""


def load_config(path: str | Path) -> DecoderConfig:
    """Read the configuration of the checkpoint folder `path`.

    Raises CheckpointError for an unknown architecture, and for whatever would make its logits differ from those of
    the family's own code: unknown activations and rotations, sizes that do not fit together.
    """
    folder = Path(path)
    raw = _text_part(read_config(folder))
    eos = read_eos_token_ids(folder, raw)
    try:
        return _parse(raw, eos)
    except CheckpointError as error:
        raise type(error)(f"{folder / 'config.json'}: {error.message}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: a value is of the wrong kind ({error})") from None


def _parse(raw: Mapping[str, Any], eos: frozenset[int] | None) -> DecoderConfig:
    architecture, family = _family(raw)
    blocks = None
    if family.blocks:
        raw, blocks = in_layers(raw)
    if family.kimi_delta:
        raw = kimi_keys(raw)
    fields = Fields(raw, family)
    for key in family.refused:
        if raw.get(key):
            raise NotNative(f"{key} is {raw[key]!r}, which is not supported for {architecture}")
    hidden_size, layers = fields.size("hidden_size"), fields.size("num_hidden_layers")
    heads = kv_heads = head_dim = 0
    latent = _latent(fields) if family.latent else None
    if family.mixes != "alone":
        heads = fields.size("num_attention_heads")
        kv_heads, head_dim = _cached_heads(fields, latent, heads, hidden_size)
    windows = windows_of(architecture, family, fields, layers)
    ropes = ropes_of(family, fields, windows, head_dim if latent is None else latent.rotated)
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    return DecoderConfig(
        architecture=architecture,
        names=family.names,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_intermediate_size(family, fields) if family.has_mlp else 0,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm=family.norm,
        norm_eps=fields.number(family.eps_key),
        ropes=ropes,
        interleaved=fields.told(family.interleaved),
        windows=windows,
        query_scalings=tuple(query_scaling_of(fields, rope) for rope in ropes),
        blocks=blocks or tuple((layer, layer if family.has_mlp else None) for layer in range(layers)),
        context_tokens=max(rope.context_tokens for rope in ropes),
        eos_token_ids=_default_eos(fields) if eos is None else eos,
        attention_scale=_attention_scale(fields, head_dim) if latent is None else _latent_scale(latent, ropes[0]),
        tied_embeddings=_tied(fields),
        qkv_bias=fields.told(family.qkv_bias),
        output_bias=fields.told(family.output_bias),
        mlp_bias=fields.told(family.mlp_bias),
        qk_norm="none" if fields.get("use_qk_norm") is False else family.qk_norm,
        activation=_activation(family, fields),
        gated=family.gated,
        parallel=family.parallel,
        attention_soft_cap=fields.optional("attn_logit_softcapping"),
        embedding_multiplier=hidden_size**0.5 if family.embedding_scaled else fields.number("embedding_multiplier", 1),
        residual_multiplier=fields.number("residual_multiplier", 1),
        logit_multiplier=_logit_multiplier(fields),
        logit_soft_cap=fields.optional("final_logit_softcapping"),
        has_head=architecture.endswith(CAUSAL),
        sinks=family.sinks,
        clamped_swiglu=_clamped_swiglu(fields),
        moe=None if family.mixture is None else moe_of(family.mixture, fields, layers),
        latent=latent,
        conv=conv_of(fields, layers) if family.convolves else None,
        mamba1=mamba1_of(family, fields, layers, hidden_size) if family.mamba1 else None,
        mamba2=mamba2_of(family, fields, layers, hidden_size) if family.mamba2 else None,
        mixes_beside=family.mixes == "beside",
        multipliers=multipliers_of(fields) if family.multiplied else None,
        wide_residual=fields.told(family.wide_residual),
        gated_delta=gated_delta_of(fields, layers, heads, hidden_size) if family.gated_delta else None,
        kimi_delta=family.kimi_delta,
        gated_attention=family.gated_attention,
        stateful_names=family.stateful_names,
        dtype=str(dtype).removeprefix("torch.") if dtype else None,
    )


def _intermediate_size(family: Family, fields: Fields) -> int:
    size = fields.size("intermediate_size" if family.mixture is None else family.mixture.dense_size_key)
    if not family.adjusts_mlp:
        return size
    size = fields.size("block_ff_dim", size)
    if not fields.get("block_auto_adjust_ff_dim"):
        return size
    multiple, size = fields.size("block_multiple_of"), int(2 * size / 3)
    if fields.get("block_ffn_dim_multiplier") is None:
        return size
    size = int(fields.number("block_ffn_dim_multiplier") * size)
    return -(-size // multiple) * multiple


def _text_part(raw: dict[str, Any]) -> dict[str, Any]:
    """The config of the text model of one that sees or hears as well: it is run as if there were nothing else."""
    text = raw.get("text_config")
    if not isinstance(text, Mapping) or "hidden_size" in raw:
        return raw
    outer = {key: raw[key] for key in _OUTER_KEYS if key in raw}
    head = {key: raw[key] for key in ("tie_word_embeddings",) if key in raw}  # the head is the outer model's
    classifiers = [name for name in raw.get("architectures") or () if str(name).endswith(CLASSIFIER)]
    return {**outer, **text, **head, "architectures": classifiers or None}


def _family(raw: Mapping[str, Any]) -> tuple[str, Family]:
    named = raw.get("architectures") or [
        name for name, family in FAMILIES.items() if family.model_type == raw.get("model_type")
    ]
    for architecture in map(str, named):
        # A base model, which may have been saved with its head or without it, is known by its causal name.
        causal = architecture.removesuffix(HEADLESS) + CAUSAL if architecture.endswith(HEADLESS) else architecture
        family = FAMILIES.get(causal.replace(CLASSIFIER, CAUSAL))
        if family is not None:
            return causal, family
    what = ", ".join(map(str, named)) or f"of model_type {raw.get('model_type')!r}"
    raise NotNative(f"architecture {what} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")


def _attention_scale(fields: Fields, head_dim: int) -> float:
    return fields.number("attention_multiplier", fields.number("query_pre_attn_scalar", head_dim or 1) ** -0.5)


def _logit_multiplier(fields: Fields) -> float:
    scale = fields.number("logit_scale", 1) * fields.number("lm_head_multiplier", 1)
    return scale / fields.number("logits_scaling", 1)


def _tied(fields: Fields) -> bool:
    tied = fields.raw.get("tie_word_embeddings", fields.get("tie_word_embeddings"))
    return bool(fields.raw.get("tie_embedding", tied) if fields.listens("tie_embedding") else tied)


def _activation(family: Family, fields: Fields) -> str:
    activation = fields.get(family.activation_key)
    if family.legacy_gelu and activation == "gelu":
        return "gelu_tanh"
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{family.activation_key} is {activation!r}; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def _cached_heads(fields: Fields, latent: LatentConfig | None, heads: int, hidden_size: int) -> tuple[int, int]:
    """Heads of the cache, and their size."""
    if latent is not None:
        return 1, (latent.rank + latent.rotated) // 2
    kv_heads = fields.size("num_key_value_heads", heads)
    head_dim = fields.size("head_dim", hidden_size // heads)
    if heads % kv_heads:
        raise CheckpointError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2:
        raise CheckpointError(f"head_dim is {head_dim}; it must be even")
    return kv_heads, head_dim


def _latent(fields: Fields) -> LatentConfig:
    latent = LatentConfig(
        q_rank=None if fields.get("q_lora_rank") is None else fields.size("q_lora_rank"),
        rank=fields.size("kv_lora_rank"),
        plain=fields.size("qk_nope_head_dim"),
        rotated=fields.size("qk_rope_head_dim"),
        value=fields.size("v_head_dim"),
    )
    if latent.rank % 2 or latent.rotated % 2:
        raise CheckpointError(f"kv_lora_rank is {latent.rank}, qk_rope_head_dim {latent.rotated}; both must be even")
    return latent


def _latent_scale(latent: LatentConfig, rope: Rope) -> float:
    """Scores of a model with a stretched context are sharpened, where YaRN leaves that to them (`mscale_all_dim`)."""
    return float((latent.plain + latent.rotated) ** -0.5 * rope.score_factor**2)


def _clamped_swiglu(fields: Fields) -> tuple[float, float] | None:
    alpha = fields.optional("swiglu_alpha")
    return None if alpha is None else (alpha, fields.number("swiglu_limit"))


def _default_eos(fields: Fields) -> frozenset[int]:
    default = fields.get("eos_token_id")
    return frozenset() if default is None else frozenset(default if isinstance(default, tuple) else (default,))


def read_eos_token_ids(folder: Path, raw: Mapping[str, Any]) -> frozenset[int] | None:
    """Ids that end a generation: those of generation_config.json if it names any, else those of config.json."""
    generation_file = folder / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    for source, file in ((generation, generation_file), (raw, folder / "config.json")):
        value = source.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
            raise CheckpointError(f"{file}: eos_token_id is {value!r}; it must be a token id or a list of them")
        return frozenset(ids)
    return frozenset() if "eos_token_id" in raw else None
