"""Weights in MXFP4, as GPT-OSS stores its experts, spread out to a dtype that can be multiplied.

Format: OCP Microscaling Formats (MX) v1.0. 32 values along the inputs share a power of two, stored with a bias of 127;
each has 4 bits: a sign, two of exponent, one of mantissa. Two stand in a byte, the first in the lower half.
"""

from __future__ import annotations

import torch

GROUP = 32
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BIAS = 127


def spread(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[..., groups * 32] of `blocks`, uint8 [..., groups, 16], and `scales`, uint8 [..., groups]."""
    values = torch.tensor([*_MAGNITUDES, *(-each for each in _MAGNITUDES)], dtype=torch.float32)
    pairs = torch.stack((values[(blocks & 0x0F).int()], values[(blocks >> 4).int()]), dim=-1)
    factors = torch.exp2(scales.float() - _BIAS)
    return (pairs.flatten(-2) * factors[..., None]).flatten(-2).to(dtype)
