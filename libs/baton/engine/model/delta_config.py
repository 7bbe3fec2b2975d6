"""Gated delta layers, which keep a state of constant size instead of K and V: of what sizes, and which layers have one,
as config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baton.core.errors import CheckpointError
from baton.engine.model.fields import Fields
from baton.engine.model.hybrid_config import FULL, LINEAR, layer_kinds


@dataclass(frozen=True, slots=True)
class GatedDeltaConfig:
    """Sizes of gated delta layers: heads of keys, each shared by as many of values, their sizes, and how many tokens
    the convolution sees. `doubled`: a token may overwrite up to twice what it finds. `eps`: of the norm of heads."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    width: int
    doubled: bool
    eps: float
    layers: tuple[int, ...]

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys, values."""
        return 2 * self.keys + self.values


def gated_delta_of(fields: Fields, layers: int, heads: int, hidden_size: int) -> GatedDeltaConfig | None:
    """Of a family with gated delta layers; None where all layers attend."""
    linear = _linear_layers(fields, layers)
    key_heads, value_heads = fields.size("linear_num_key_heads", heads), fields.size("linear_num_value_heads", heads)
    if value_heads % key_heads:
        raise CheckpointError(
            f"linear_num_value_heads {value_heads} is not a multiple of linear_num_key_heads {key_heads}"
        )
    width = fields.size("linear_conv_kernel_dim")
    if width < 2:
        raise CheckpointError(f"linear_conv_kernel_dim is {width}; it must be at least 2")
    if fields.get("hidden_act") != "silu":
        raise CheckpointError(f"hidden_act is {fields.get('hidden_act')!r}; gated deltas are supported with silu")
    key_dim = fields.size("linear_key_head_dim", hidden_size * 3 // (4 * key_heads))
    config = GatedDeltaConfig(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=key_dim,
        value_dim=fields.size("linear_value_head_dim", 2 * key_dim),
        width=width,
        doubled=fields.told("linear_allow_neg_eigval"),
        eps=fields.number("linear_norm_eps", fields.number("rms_norm_eps")),
        layers=linear,
    )
    return config if linear else None


def kimi_keys(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json of Kimi Linear, with the keys that others have: it counts layers from 1, in an object."""
    own, layers = raw.get("linear_attn_config") or {}, raw.get("num_hidden_layers") or 0
    heads = own.get("num_heads", raw.get("linear_num_heads", 32))
    head_dim = own.get("head_dim", raw.get("linear_head_dim", 128))
    kinds, attending = raw.get("layer_types"), own.get("full_attn_layers")
    if kinds is None:
        attends = [layer + 1 in attending if attending else layer and layer % 4 == 0 for layer in range(layers)]
        kinds = [FULL if each else LINEAR for each in attends]
    dense = raw.get("first_k_dense_replace", 1)
    mlps = raw.get("mlp_layer_types") or ["dense" if layer < dense else "sparse" for layer in range(layers)]
    return {
        **raw, "linear_num_key_heads": heads, "linear_num_value_heads": heads, "linear_key_head_dim": head_dim,
        "linear_value_head_dim": head_dim, "layer_types": kinds, "mlp_layer_types": mlps,
        "linear_conv_kernel_dim": own.get("short_conv_kernel_size", raw.get("linear_conv_kernel_dim", 4)),
    }  # fmt: skip


def _linear_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    kinds = layer_kinds(fields, layers, LINEAR)
    if kinds is None:
        every = fields.size("full_attention_interval")
        kinds = [LINEAR if (layer + 1) % every else FULL for layer in range(layers)]
    if FULL not in kinds:
        raise CheckpointError("no layer attends, which is not supported")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == LINEAR)
