"""Mamba's mixers, of the first kind and the second: which layers have one, and of what sizes, as config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baton.core.errors import CheckpointError
from baton.engine.model.family import Family, MambaKeys
from baton.engine.model.fields import Fields
from baton.engine.model.hybrid_config import FULL, LINEAR, layer_kinds

# How Mamba2's mixers end: with norm(y * silu(gate)), norm(y) * silu(gate), or y * silu(gate).
NORM_LAST, NORM_FIRST, NO_NORM = "norm last", "norm first", "no norm"


@dataclass(frozen=True, slots=True)
class Mamba1Config:
    """Sizes of Mamba's mixers, `rank` that of what steps are made of, and which layers have one. `norm_eps`: what is
    selected by a token is normalized, with weights or, not `norm_weights`, without; None: it is not."""

    inner: int
    state: int
    rank: int
    width: int
    conv_bias: bool
    bias: bool
    norm_eps: float | None
    norm_weights: bool
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mamba2Config:
    """Sizes of Mamba2's mixers, and which layers have one. `gating` is one of the above."""

    heads: int
    head_dim: int
    groups: int
    state: int
    width: int
    conv_bias: bool
    bias: bool
    output_bias: bool
    gating: str
    layers: tuple[int, ...]

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return self.inner + 2 * self.groups * self.state


@dataclass(frozen=True, slots=True)
class Multipliers:
    """What goes into matrices, and what comes out of them, is multiplied by these numbers (Falcon-H1; Yang et al. 2022,
    "Tensor Programs V"). `mixed`: of a mixer's gate, x, b, c and step."""

    attention_in: float
    key: float
    attention_out: float
    mixer_in: float
    mixed: tuple[float, float, float, float, float]
    mixer_out: float
    gate: float
    down: float


def mamba1_of(family: Family, fields: Fields, layers: int, hidden_size: int) -> Mamba1Config | None:
    """Of a family with Mamba's mixers; None where all layers attend."""
    keys, mixing = family.mamba_keys, _mixing_layers(family, fields, layers)
    if not mixing:
        return None
    _, inner = _inner(keys, fields, hidden_size)
    rank = -(-hidden_size // 16) if fields.get(keys.rank) == "auto" else fields.size(keys.rank)
    eps_key = family.mixer_eps_key
    return Mamba1Config(
        inner=inner,
        state=fields.size(keys.state),
        rank=rank,
        width=_width(fields, keys.width),
        conv_bias=fields.told(keys.conv_bias),
        bias=fields.told(keys.bias),
        norm_eps=None if eps_key is None else fields.number(eps_key),
        norm_weights=family.mixer_norm_weights,
        layers=mixing,
    )


def mamba2_of(family: Family, fields: Fields, layers: int, hidden_size: int) -> Mamba2Config | None:
    """Of a family with Mamba2's mixers; None where all layers attend."""
    keys, mixing = family.mamba_keys, _mixing_layers(family, fields, layers)
    if not mixing:
        return None
    told, inner = _inner(keys, fields, hidden_size)
    heads = fields.size(keys.heads)
    head_dim = inner // heads if fields.get(keys.head_dim) == "auto" else fields.size(keys.head_dim)
    groups = fields.size(keys.groups)
    if heads * head_dim != inner or heads % groups:
        raise CheckpointError(f"{keys.heads} {heads} of {head_dim} in {groups} groups do not make {told} {inner}")
    limits = fields.get("time_step_limit") or (0.0, float("inf"))
    # JSON has no infinity: transformers writes {"__float__": "Infinity"}
    least, most = (float(each["__float__"] if isinstance(each, Mapping) else each) for each in limits)
    if least != 0.0 or most != float("inf"):
        raise CheckpointError(f"time_step_limit is {limits}, which is not supported")
    return Mamba2Config(
        heads=heads,
        head_dim=head_dim,
        groups=groups,
        state=fields.size(keys.state),
        width=_width(fields, keys.width),
        conv_bias=fields.told(keys.conv_bias),
        bias=fields.told(keys.bias),
        output_bias=fields.told(keys.output_bias),
        gating=_gating(fields),
        layers=mixing,
    )


def multipliers_of(fields: Fields) -> Multipliers:
    """Of a family that has them."""
    gate, down = map(float, fields.get("mlp_multipliers") or (1.0, 1.0))
    z, x, b, c, step = map(float, fields.get("ssm_multipliers") or (1.0,) * 5)
    return Multipliers(
        attention_in=fields.number("attention_in_multiplier"),
        key=fields.number("key_multiplier"),
        attention_out=fields.number("attention_out_multiplier"),
        mixer_in=fields.number("ssm_in_multiplier"),
        mixed=(z, x, b, c, step),
        mixer_out=fields.number("ssm_out_multiplier"),
        gate=gate,
        down=down,
    )


def _inner(keys: MambaKeys, fields: Fields, hidden_size: int) -> tuple[str, int]:
    """What says how wide mixers are, and how wide."""
    if keys.expand is None:
        return f"{keys.heads} * {keys.head_dim}", fields.size(keys.heads) * fields.size(keys.head_dim)
    if keys.inner is not None and fields.get(keys.inner) is not None:
        return keys.inner, fields.size(keys.inner)
    return f"{keys.expand} * hidden_size", fields.size(keys.expand) * hidden_size


def _mixing_layers(family: Family, fields: Fields, layers: int) -> tuple[int, ...]:
    key = "mamba_hidden_act" if fields.listens("mamba_hidden_act") else "hidden_act"
    if fields.get(key) != "silu":
        raise CheckpointError(f"{key} is {fields.get(key)!r}; Mamba's mixers are supported with silu")
    if family.mixes in ("alone", "beside"):
        return tuple(range(layers))
    attending = _attending_layers(family, fields, layers)
    if not attending:
        raise CheckpointError("no layer attends, which is not supported for this architecture")
    return tuple(layer for layer in range(layers) if layer not in attending)


def _attending_layers(family: Family, fields: Fields, layers: int) -> list[int]:
    if family.mixes == "period":
        period, offset = fields.size("attn_layer_period"), fields.get("attn_layer_offset")
        return [layer for layer in range(layers) if layer % period == offset]
    kinds = layer_kinds(fields, layers, LINEAR)
    if kinds is None:
        return list(fields.get("attn_layer_indices") or ())
    return [layer for layer, kind in enumerate(kinds) if kind == FULL]


def _gating(fields: Fields) -> str:
    if fields.get("mamba_rms_norm") is False:
        return NO_NORM
    return NORM_FIRST if fields.get("mamba_norm_before_gate") else NORM_LAST


def _width(fields: Fields, key: str) -> int:
    width = fields.size(key)
    if width < 2:
        raise CheckpointError(f"{key} is {width}; it must be at least 2")
    return width
