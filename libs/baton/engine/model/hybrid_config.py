"""Layers that keep a state of constant size instead of K and V: which, and of what sizes, as config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baton.core.errors import CheckpointError
from baton.engine.model.fields import Fields

FULL, LINEAR = "full_attention", "linear_attention"
_OLD_KINDS = {"attention": FULL, "mamba": LINEAR}  # as transformers 4 called them


@dataclass(frozen=True, slots=True)
class ConvConfig:
    """Gated short convolutions: how many tokens they see, and which layers have one instead of attention."""

    width: int
    bias: bool
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mamba2Config:
    """Sizes of Mamba2's mixers, and which layers have one instead of attention."""

    heads: int
    head_dim: int
    groups: int
    state: int
    width: int
    conv_bias: bool
    bias: bool
    layers: tuple[int, ...]

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return self.inner + 2 * self.groups * self.state


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
    kinds = [_OLD_KINDS.get(kind, kind) for kind in kinds]
    if len(kinds) != layers or not set(kinds) <= {FULL, stateful}:
        raise CheckpointError(
            f"layer_types must name {FULL} or {stateful} for each of the {layers} layers; it is {kinds}"
        )
    return kinds


def mamba2_of(fields: Fields, layers: int, hidden_size: int) -> Mamba2Config | None:
    """Of a family with Mamba2's mixers in all layers that do not attend; None where all do."""
    kinds, attending = layer_kinds(fields, layers, LINEAR), fields.get("attn_layer_indices") or ()
    if kinds is not None:
        attending = [layer for layer, kind in enumerate(kinds) if kind == FULL]
    if not attending:
        raise CheckpointError("no layer attends, which is not supported")
    if len(attending) == layers:
        return None
    heads, inner = fields.size("mamba_n_heads"), fields.size("mamba_expand") * hidden_size
    head_dim = inner // heads if fields.get("mamba_d_head") == "auto" else fields.size("mamba_d_head")
    groups, width = fields.size("mamba_n_groups"), fields.size("mamba_d_conv")
    if heads * head_dim != inner or heads % groups:
        raise CheckpointError(
            f"mamba_n_heads {heads} of {head_dim} in {groups} groups do not make mamba_expand * hidden_size {inner}"
        )
    if width < 2:
        raise CheckpointError(f"mamba_d_conv is {width}; it must be at least 2")
    if fields.get("hidden_act") != "silu":
        raise CheckpointError(f"hidden_act is {fields.get('hidden_act')!r}; Mamba2's mixers are supported with silu")
    limits = fields.get("time_step_limit") or (0.0, float("inf"))
    # JSON has no infinity: transformers writes {"__float__": "Infinity"}
    least, most = (float(each["__float__"] if isinstance(each, Mapping) else each) for each in limits)
    if least != 0.0 or most != float("inf"):
        raise CheckpointError(f"time_step_limit is {limits}, which is not supported")
    return Mamba2Config(
        heads=heads,
        head_dim=head_dim,
        groups=groups,
        state=fields.size("mamba_d_state"),
        width=width,
        conv_bias=fields.told("mamba_conv_bias"),
        bias=fields.told("mamba_proj_bias"),
        layers=tuple(layer for layer in range(layers) if layer not in attending),
    )
