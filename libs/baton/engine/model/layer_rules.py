"""What differs from layer to layer: what tokens attend to, how heads are rotated, how queries are scaled.

Read from config.json while a model is loaded; each rule is one that some family's code has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from baton.core.errors import CheckpointError
from baton.engine.attention import Chunks, Window
from baton.engine.model.family import Family
from baton.engine.model.fields import Fields
from baton.engine.model.rope import Rope, parse_rope


@dataclass(frozen=True, slots=True)
class QueryScaling:
    """Queries grow with their position p, times 1 + beta * log(1 + floor((p + shift) / period)): the attention of long
    contexts stays as sharp as that of short ones (Nakanishi 2025, "Scalable-Softmax Is Superior for Attention")."""

    beta: float
    period: int
    shift: int


def windows_of(architecture: str, family: Family, fields: Fields, layers: int) -> tuple[Window, ...]:
    """What a token attends to, by layer: `layer_types` says which layers slide, else the family's own rule."""
    if family.sliding == "never":
        return (None,) * layers
    kinds = fields.raw.get("layer_types")
    name = "chunked_attention" if family.sliding == "chunks" else "sliding_attention"
    if kinds is not None and (len(kinds) != layers or not set(kinds) <= {"full_attention", name}):
        raise CheckpointError(
            f"layer_types must name full_attention or {name} for each of the {layers} layers; it is {kinds}"
        )
    window = _window(family, fields)
    if kinds is None and family.sliding == "layer_types" and window is not None:
        raise CheckpointError(f"use_sliding_window is on; {architecture} needs layer_types to say for which layers")
    slides = _sliding_layers(family, fields, layers) if kinds is None else [kind == name for kind in kinds]
    if family.sliding == "always" and window is not None and not all(slides):
        raise CheckpointError(f"layer_types mixes full and sliding attention, which {architecture} does not define")
    if kinds is not None and any(slides) and window is None:
        by_null = fields.get("sliding_window") is None
        switch = "sliding_window is null" if by_null else "use_sliding_window is off"
        raise CheckpointError(f"layer_types has {name}, but {switch}")
    return tuple(window if slide else None for slide in slides)


def _window(family: Family, fields: Fields) -> Window:
    """What layers that slide attend to; None where the whole model does not slide."""
    if family.sliding == "chunks":
        return None if fields.get("attention_chunk_size") is None else Chunks(fields.size("attention_chunk_size"))
    switched_off = family.sliding in ("qwen", "layer_types") and not fields.raw.get("use_sliding_window", False)
    return None if switched_off or fields.get("sliding_window") is None else fields.size("sliding_window")


def _sliding_layers(family: Family, fields: Fields, layers: int) -> list[bool]:
    if family.sliding == "qwen":
        return [layer >= fields.get("max_window_layers") for layer in range(layers)]
    if family.sliding == "chunks":
        return _rotating_layers(fields, layers)
    every = fields.get("sliding_window_pattern") if family.sliding == "pattern" else None
    return [every is None or (layer + 1) % every != 0 for layer in range(layers)]


def _rotating_layers(fields: Fields, layers: int) -> list[bool]:
    listed, every = fields.get("no_rope_layers"), fields.size("no_rope_layer_interval")
    if not listed:
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if len(listed) < layers:
        raise CheckpointError(f"no_rope_layers has {len(listed)} entries; there are {layers} layers")
    return [bool(rotates) for rotates in listed[:layers]]


def ropes_of(family: Family, fields: Fields, windows: tuple[Window, ...], head_dim: int) -> tuple[Rope, ...]:
    """The rotation of each layer: one for all, or one for layers that slide and one for the others."""
    raw = fields.raw.get("rope_scaling") or fields.raw.get("rope_parameters") or fields.get("rope_parameters") or {}
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"rope_parameters is {raw!r}; it must be an object")
    by_kind = {key: value or {} for key, value in raw.items() if key in ("full_attention", "sliding_attention")}
    if by_kind and not family.local_rope:
        raise CheckpointError("rope_parameters differ by layer type; this architecture has one rotation for all layers")
    rotates = _rotates(family, fields, raw)
    theta = fields.number("rope_theta", None if rotates else 1.0)
    full = _rope(fields, by_kind.get("full_attention", {} if by_kind else raw), theta, head_dim)
    slides = full
    if family.local_rope:
        local = by_kind.get("sliding_attention", {})
        slides = _rope(fields, local, fields.number("rope_local_base_freq", theta), head_dim)
    still = replace(full, part=0.0)
    if not rotates:
        return (still,) * len(windows)
    if family.rope_layers == "listed":
        return tuple(full if rotates else still for rotates in _rotating_layers(fields, len(windows)))
    if family.rope_layers == "sliding" or (family.rope_layers == "sliding_if_any" and any(windows)):
        full = still
    return tuple(full if window is None else slides for window in windows)


def _rotates(family: Family, fields: Fields, raw: Mapping[str, Any]) -> bool:
    """Whether any layer does."""
    if family.rope_layers == "asked":
        return bool(fields.get("position_embedding_type") == "rope")
    if family.rope_layers == "none":
        return False
    return family.rope_layers != "based" or None not in (fields.get("rope_theta"), raw.get("rope_theta", 1.0))


def _rope(fields: Fields, raw: Mapping[str, Any], theta: float, head_dim: int) -> Rope:
    listens = fields.get("partial_rotary_factor")
    part = fields.raw.get("partial_rotary_factor") or listens or 1.0
    rope = parse_rope(raw, fields.raw, theta, part, fields.size("max_position_embeddings"))
    if listens is None and rope.part != 1.0:
        raise CheckpointError("partial_rotary_factor is set, which this architecture does not know")
    if rope.rotated(head_dim) % 2:
        raise CheckpointError(f"partial_rotary_factor {rope.part} of head_dim {head_dim} is no even number")
    wrong = [len(each) for each in rope.divisors or () if len(each) != rope.rotated(head_dim) // 2]
    if wrong:
        raise CheckpointError(
            f"longrope has factors for {wrong[0]} pairs of dimensions; {rope.rotated(head_dim) // 2} are rotated"
        )
    return rope


def query_scaling_of(fields: Fields, rope: Rope) -> QueryScaling | None:
    """Of a layer of that rotation: Llama 4 scales those that do not rotate, Ministral 3 all."""
    if fields.get("attn_temperature_tuning"):
        scaling = QueryScaling(fields.number("attn_scale"), fields.size("floor_scale"), shift=1)
        return scaling if rope.part == 0.0 else None
    raw = fields.raw.get("rope_scaling") or fields.raw.get("rope_parameters") or fields.get("rope_parameters") or {}
    if not fields.listens("llama_4_scaling_beta") or raw.get("llama_4_scaling_beta") is None:
        return None
    return QueryScaling(float(raw["llama_4_scaling_beta"]), rope.original_tokens, shift=0)
