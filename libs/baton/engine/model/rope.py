"""Rotary position embedding: what config.json says about it, and the angles of a step's positions.

Part of every forward pass, once per step for all layers. Formulas: RoFormer (Su et al. 2021); linear position
interpolation (Chen et al. 2023); YaRN (Peng et al. 2023, "YaRN: Efficient Context Window Extension"); the
frequency-dependent scaling that came with Llama 3.1. Knows no attention and no weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton.core.errors import CheckpointError

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")
_DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Rope:
    """Parameters of the rotation; `kind` is one of SUPPORTED. `original_tokens`: context length of pretraining.

    `attention_factor` multiplies cosines and sines. `context_tokens` is how far the rotation is meant to reach.
    """

    kind: str
    theta: float
    factor: float
    original_tokens: int
    context_tokens: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def parse_rope(config: Mapping[str, Any], max_position: int) -> Rope:
    """The rotation of a config.json, in the style of transformers 4 (`rope_theta`, `rope_scaling`) or 5
    (`rope_parameters`).

    "dynamic" changes its base with the longest sequence in a batch, once that passes `max_position_embeddings`;
    cached keys could not be shared then. Up to there it is the unscaled rotation, and the context ends there.
    Raises CheckpointError naming what is not supported or lacking.
    """
    raw = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"rope_parameters is {raw!r}; it must be an object")
    if any(isinstance(value, Mapping) for value in raw.values()):
        raise CheckpointError("rope_parameters differ by layer type; one rotation for all layers is supported")
    if raw.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise CheckpointError("partial_rotary_factor is set; only rotation of the whole head is supported")
    kind = raw.get("rope_type", raw.get("type", "default"))
    theta = float(raw.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA)
    if kind not in SUPPORTED:
        raise CheckpointError(f"rope type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}")
    if kind in ("default", "dynamic"):
        return Rope("default", theta, 1.0, max_position, max_position)
    original = config.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
    original_tokens = int(original or max_position)
    if kind == "yarn":
        return _parse_yarn(raw, theta, original_tokens, max_position)
    factor = _number(raw, kind, "factor")
    if kind == "linear":
        return Rope(kind, theta, factor, original_tokens, max_position)
    low, high = _number(raw, kind, "low_freq_factor"), _number(raw, kind, "high_freq_factor")
    if low >= high:
        raise CheckpointError(f"llama3 rope has low_freq_factor {low}; it must be less than high_freq_factor {high}")
    return Rope(kind, theta, factor, original_tokens, max_position, low_freq_factor=low, high_freq_factor=high)


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position of each pair of dimensions, on the CPU."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain, head_dim)
    return plain


def rotation(
    inverse_frequencies_D2: torch.Tensor, positions_T: torch.Tensor, attention_factor: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of T positions, each [T, 1, head_dim / 2] of `dtype`; angles are computed in float32."""
    angles_T1D = (positions_T.float()[:, None] * inverse_frequencies_D2)[:, None]
    return (angles_T1D.cos() * attention_factor).to(dtype), (angles_T1D.sin() * attention_factor).to(dtype)


def rotate(x_TND: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """Rotate each head's pairs (i, i + head_dim / 2) by its token's angles. A new tensor [T, N, head_dim]."""
    first, second = x_TND.chunk(2, dim=-1)
    return torch.cat((first * cos_T1D - second * sin_T1D, second * cos_T1D + first * sin_T1D), dim=-1)


def _number(raw: Mapping[str, Any], kind: str, name: str) -> float:
    value = raw.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"{kind} rope needs {name}, a positive number; it is {value!r}")
    return float(value)


def _parse_yarn(raw: Mapping[str, Any], theta: float, original_tokens: int, max_position: int) -> Rope:
    factor = _number(raw, "yarn", "factor") if raw.get("factor") is not None else max_position / original_tokens
    attention_factor = raw.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all_dim = raw.get("mscale"), raw.get("mscale_all_dim")
        if mscale and mscale_all_dim:
            attention_factor = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all_dim)
        else:
            attention_factor = _yarn_mscale(factor, 1.0)
    return Rope(
        "yarn",
        theta,
        factor,
        original_tokens,
        max(max_position, int(original_tokens * factor)),
        beta_fast=float(raw.get("beta_fast") or 32.0),
        beta_slow=float(raw.get("beta_slow") or 1.0),
        truncate=bool(raw.get("truncate", True)),
        attention_factor=float(attention_factor),
    )


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between blended."""
    rotations = rope.original_tokens * plain / (2 * math.pi)  # full turns within the pretraining context
    kept = ((rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0.0, 1.0)
    return plain * ((1.0 - kept) / rope.factor + kept)


def _yarn(rope: Rope, plain: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Dimensions that turn often are kept, those that turn less than once are interpolated, with a ramp between."""

    def dimension_turning(times: float) -> float:
        turns = rope.original_tokens / (times * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    interpolated = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return plain * (1.0 - interpolated) + plain / rope.factor * interpolated
