"""Numbers of few bits, taken out of what formats pack them into."""

from __future__ import annotations

import torch

# OCP Microscaling Formats (MX) v1.0, E2M1, doubled: whole numbers.
_E2M1_DOUBLED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
E2M1_UNIT = 0.5


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., n * 32 / bits] of int32 [..., n], lowest bits first; `bits` is 4 or 8."""
    octets = words.contiguous().view(torch.uint8)
    return octets if bits == 8 else nibbles(octets)


def nibbles(octets: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 2 n] of uint8 [..., n], the low half of each first."""
    return torch.stack((octets & 0x0F, octets >> 4), dim=-1).flatten(-2)


def centred(octets: torch.Tensor) -> torch.Tensor:
    """int8: what is stored as 0 to 255, less 128."""
    return (octets ^ 0x80).view(torch.int8)


def e2m1_table() -> torch.Tensor:
    """float32 [16]: what 4-bit floats mean, in units of E2M1_UNIT."""
    return torch.tensor([*_E2M1_DOUBLED, *(-each for each in _E2M1_DOUBLED)])
