"""Rotary position embedding: what config.json says about it, and the angles of a step's positions.

Part of every forward pass, once per step for all layers that share a rotation. Formulas: RoFormer (Su et al. 2021);
linear position interpolation (Chen et al. 2023); YaRN (Peng et al. 2023, "YaRN: Efficient Context Window Extension");
LongRoPE (Ding et al. 2024); the frequency-dependent scaling that came with Llama 3.1. Knows no attention, no weights.

There is one rotation: of a whole head, by pairs (i, i + head_dim / 2). Families that rotate neighbouring dimensions, a
part of the head, or nothing get it by the order in which their heads' rows are read (`head_order`) and by pairs that
turn by no angle: scores depend on neither the order of dimensions nor on a turn by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from baton.core.errors import CheckpointError

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")


@dataclass(frozen=True, slots=True)
class Rope:
    """Parameters of a rotation; `kind` is one of SUPPORTED. `original_tokens`: context length of pretraining.

    `part` of a head is rotated; 0: nothing. `attention_factor` multiplies cosines and sines; `score_factor`, squared,
    scores, of models that leave that to them (DeepSeek). `context_tokens` is how far the rotation is meant to reach.
    `divisors` of longrope: of each pair's frequency, for contexts within `original_tokens` and for longer ones.
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
    score_factor: float = 1.0
    part: float = 1.0
    divisors: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def rotated(self, head_dim: int) -> int:
        """Dimensions of a head that are rotated, or of which some are, for "proportional"."""
        return head_dim if self.kind == "proportional" else int(head_dim * self.part)


def parse_rope(raw: Mapping[str, Any], fields: Mapping[str, Any], theta: float, part: float, max_position: int) -> Rope:
    """The rotation that `raw` describes, the `rope_parameters` of transformers 5 or the `rope_scaling` of 4.

    `theta` and `part` count where `raw` does not say; `fields` are those of the whole config.json.
    "dynamic" changes its base with the longest sequence in a batch, once that passes `max_position_embeddings`;
    cached keys could not be shared then. Up to there it is the unscaled rotation, and the context ends there.
    Raises CheckpointError naming what is not supported or lacking.
    """
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "su" or "long_factor" in raw:  # as Phi-3 called it first
        kind = "longrope"
    theta = float(raw.get("rope_theta") or theta)
    part = float(raw.get("partial_rotary_factor") or part)
    if kind not in SUPPORTED:
        raise CheckpointError(f"rope type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}")
    if not 0.0 <= part <= 1.0:
        raise CheckpointError(f"partial_rotary_factor is {part}; it must be between 0 and 1")
    if kind in ("default", "dynamic"):
        return Rope("default", theta, 1.0, max_position, max_position, part=part)
    if kind == "proportional":
        return Rope(kind, theta, float(raw.get("factor") or 1.0), max_position, max_position, part=part)
    original = fields.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
    original_tokens = int(original or max_position)
    if kind == "yarn":
        return _parse_yarn(raw, theta, part, original_tokens, max_position)
    if kind == "longrope":
        return _parse_longrope(raw, theta, part, original_tokens, max_position)
    factor = _number(raw, kind, "factor")
    if kind == "linear":
        return Rope(kind, theta, factor, original_tokens, max_position, part=part)
    low, high = _number(raw, kind, "low_freq_factor"), _number(raw, kind, "high_freq_factor")
    if low >= high:
        raise CheckpointError(f"llama3 rope has low_freq_factor {low}; it must be less than high_freq_factor {high}")
    return Rope(
        kind, theta, factor, original_tokens, max_position, low_freq_factor=low, high_freq_factor=high, part=part
    )


def head_order(rope: Rope, head_dim: int, interleaved: bool) -> list[int] | None:
    """The dimensions of a head in the order that makes their pairs (i, i + head_dim / 2); None: as they are.

    Rotated pairs come first in both halves, those that pass after them. `interleaved`: neighbours are pairs.
    """
    rotated = rope.rotated(head_dim)
    if not interleaved and rotated in (0, head_dim):
        return None
    first = range(0, rotated, 2) if interleaved else range(rotated // 2)
    second = range(1, rotated, 2) if interleaved else range(rotated // 2, rotated)
    half = (rotated + head_dim) // 2
    return [*first, *range(rotated, half), *second, *range(half, head_dim)]


def inverse_frequencies(rope: Rope, head_dim: int, context_tokens: int) -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position of each pair of dimensions, on the CPU; 0 for those that pass.

    `context_tokens`, how long requests may get, decides between the two frequencies of longrope. One must be taken for
    all: K of a shared prefix does not know how long its requests will get.
    """
    rotated = rope.rotated(head_dim)
    exponents = torch.arange(0, rotated, 2, dtype=torch.int64).float() / max(rotated, 1)
    frequencies = _scaled(rope, 1.0 / (rope.theta**exponents), rotated, context_tokens)
    if rope.kind == "proportional":
        frequencies = frequencies[: int(rope.part * head_dim // 2)]
    return torch.cat((frequencies, frequencies.new_zeros(head_dim // 2 - len(frequencies))))


def rotation(
    inverse_frequencies_D2: torch.Tensor, positions_T: torch.Tensor, attention_factor: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of T positions, each [T, 1, head_dim / 2] of `dtype`; angles are computed in float32."""
    angles_T1D = torch.outer(positions_T.float(), inverse_frequencies_D2)[:, None]
    cos_T1D, sin_T1D = angles_T1D.cos(), angles_T1D.sin()
    if attention_factor != 1.0:
        factors_D2 = torch.where(inverse_frequencies_D2 == 0, 1.0, attention_factor)  # what passes is not scaled
        cos_T1D, sin_T1D = cos_T1D * factors_D2, sin_T1D * factors_D2
    return cos_T1D.to(dtype), sin_T1D.to(dtype)


def rotate(x_TND: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """Rotate each head's pairs (i, i + head_dim / 2) by its token's angles. A new tensor [T, N, head_dim]."""
    first, second = x_TND.chunk(2, dim=-1)
    return torch.cat((first * cos_T1D - second * sin_T1D, second * cos_T1D + first * sin_T1D), dim=-1)


def _number(raw: Mapping[str, Any], kind: str, name: str) -> float:
    value = raw.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"{kind} rope needs {name}, a positive number; it is {value!r}")
    return float(value)


def _parse_yarn(raw: Mapping[str, Any], theta: float, part: float, original_tokens: int, max_position: int) -> Rope:
    factor = _number(raw, "yarn", "factor") if raw.get("factor") is not None else max_position / original_tokens
    attention_factor = raw.get("attention_factor")
    mscale, mscale_all_dim = raw.get("mscale"), raw.get("mscale_all_dim")
    if attention_factor is None:
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
        score_factor=_yarn_mscale(factor, mscale_all_dim) if mscale_all_dim else 1.0,
        part=part,
    )


def _parse_longrope(raw: Mapping[str, Any], theta: float, part: float, original_tokens: int, max_position: int) -> Rope:
    factor = float(raw.get("factor") or max_position / original_tokens)
    attention_factor = raw.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original_tokens)) if factor > 1.0 else 1.0
    return Rope(
        "longrope",
        theta,
        factor,
        original_tokens,
        max_position,
        attention_factor=float(attention_factor),
        part=part,
        divisors=(_divisors(raw, "short_factor"), _divisors(raw, "long_factor")),
    )


def _divisors(raw: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = raw.get(name)
    if not isinstance(value, Sequence) or not all(isinstance(each, (int, float)) and each > 0 for each in value):
        raise CheckpointError(f"longrope needs {name}, a list of positive numbers; it is {value!r}")
    return tuple(map(float, value))


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _scaled(rope: Rope, plain: torch.Tensor, rotated: int, context_tokens: int) -> torch.Tensor:
    if rope.kind in ("linear", "proportional"):
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain, rotated)
    if rope.divisors is not None:
        return plain / torch.tensor(rope.divisors[context_tokens > rope.original_tokens])
    return plain


def _llama3(rope: Rope, plain: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between blended."""
    rotations = rope.original_tokens * plain / (2 * math.pi)  # full turns within the pretraining context
    kept = ((rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0.0, 1.0)
    return plain * ((1.0 - kept) / rope.factor + kept)


def _yarn(rope: Rope, plain: torch.Tensor, rotated: int) -> torch.Tensor:
    """Dimensions that turn often are kept, those that turn less than once are interpolated, with a ramp between."""

    def dimension_turning(times: float) -> float:
        turns = rope.original_tokens / (times * 2 * math.pi)
        return rotated * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    interpolated = ((torch.arange(rotated // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return plain * (1.0 - interpolated) + plain / rope.factor * interpolated
