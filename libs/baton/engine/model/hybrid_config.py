"""Layers that keep a state of constant size: which they are, and short convolutions, as config.json says."""

from __future__ import annotations

from dataclasses import dataclass

from baton.core.errors import CheckpointError
from baton.engine.model.fields import Fields

FULL, LINEAR = "full_attention", "linear_attention"
OLD_KINDS = {"attention": FULL, "mamba": LINEAR}  # as transformers 4 called them


@dataclass(frozen=True, slots=True)
class ConvConfig:
    """Gated short convolutions: how many tokens they see, and which layers have one instead of attention."""

    width: int
    bias: bool
    layers: tuple[int, ...]


def conv_of(fields: Fields, layers: int) -> ConvConfig | None:
    """Of a family with short convolutions; None where all layers attend."""
    kinds, attending = layer_kinds(fields, layers, "conv"), fields.get("full_attn_idxs")
    if kinds is None and not fields.listens("full_attn_idxs"):
        raise CheckpointError("layer_types is missing")
    if kinds is None:
        attends = [attending is None or layer in attending for layer in range(layers)]
        kinds = [FULL if each else "conv" for each in attends]
    if FULL not in kinds:
        raise CheckpointError("no layer attends, which is not supported")
    width = fields.size("conv_L_cache")
    if width < 2:
        raise CheckpointError(f"conv_L_cache is {width}; it must be at least 2")
    conv = tuple(layer for layer, kind in enumerate(kinds) if kind == "conv")
    return ConvConfig(width, fields.told("conv_bias"), conv) if conv else None


def layer_kinds(fields: Fields, layers: int, stateful: str) -> list[str] | None:
    """What `layer_types` calls each layer, `stateful` or full_attention; None where it does not say."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return None
    kinds = [OLD_KINDS.get(kind, kind) for kind in kinds]
    if len(kinds) != layers or not set(kinds) <= {FULL, stateful}:
        raise CheckpointError(
            f"layer_types must name {FULL} or {stateful} for each of the {layers} layers; it is {kinds}"
        )
    return kinds
