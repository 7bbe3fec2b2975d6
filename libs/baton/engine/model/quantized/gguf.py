"""Blocks of GGUF files as matrices of few bits, exactly: all of their kinds lie on even steps.

Layouts: ggml's block structures. The first ones are 32 weights with one step; of the K kinds 256 weights, whose
groups have steps (and lowest values) of few bits themselves, in units that the block names.

    O  outputs    N  blocks of a row    W  bytes of a block
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from baton.engine.model.quantized.matrix import QuantizedMatrix
from baton.engine.model.tensors import TensorReader

_SUPER = 256  # weights in a block of the K kinds
# Values, steps, lowest, zero and units of QuantizedMatrix.
_Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int, torch.Tensor | None]


def matrix(reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
    outs, fan_in = shape
    kind, octets = reader.blocks(f"{name}.weight", shape, tuple(_KINDS))
    size, unpack = _KINDS[kind]
    values, steps, lowest, zero, units = unpack(octets.view(outs, fan_in // size, -1))
    return QuantizedMatrix(
        values.reshape(shape).contiguous(),
        steps.reshape(outs, -1).contiguous(),
        None if lowest is None else lowest.reshape(outs, -1).contiguous(),
        zero,
        units=units,
    )


def _q4_0(octets_ONW: torch.Tensor) -> _Parts:
    return _halves(octets_ONW[..., 2:]), _halfs(octets_ONW[..., :2]), None, 8, None


def _q4_1(octets_ONW: torch.Tensor) -> _Parts:
    units = _halfs(octets_ONW[..., :4])
    return _halves(octets_ONW[..., 4:]), units[..., :1], units[..., 1:], 0, None


def _q5_0(octets_ONW: torch.Tensor) -> _Parts:
    fifth = _bits(octets_ONW[..., 2:6])
    return (_halves(octets_ONW[..., 6:]) | fifth << 4).view(torch.int8), _halfs(octets_ONW[..., :2]), None, 16, None


def _q5_1(octets_ONW: torch.Tensor) -> _Parts:
    units, fifth = _halfs(octets_ONW[..., :4]), _bits(octets_ONW[..., 4:8])
    return (_halves(octets_ONW[..., 8:]) | fifth << 4).view(torch.int8), units[..., :1], units[..., 1:], 0, None


def _q8_0(octets_ONW: torch.Tensor) -> _Parts:
    return octets_ONW[..., 2:].contiguous().view(torch.int8), _halfs(octets_ONW[..., :2]), None, 0, None


def _q4_k(octets_ONW: torch.Tensor) -> _Parts:
    steps, lowest, units = _k_steps(octets_ONW)
    return _k_nibbles(octets_ONW[..., 16:]), steps, lowest, 0, units


def _q5_k(octets_ONW: torch.Tensor) -> _Parts:
    steps, lowest, units = _k_steps(octets_ONW)
    # Bit g of byte l belongs to weight l of group g.
    fifth = (octets_ONW[..., None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    values = _k_nibbles(octets_ONW[..., 48:]) | fifth.flatten(-2) << 4
    return values.view(torch.int8), steps, lowest, 0, units


def _q6_k(octets_ONW: torch.Tensor) -> _Parts:
    low = octets_ONW[..., :128].unflatten(-1, (2, 64))
    high = octets_ONW[..., 128:192].unflatten(-1, (2, 32))
    low = torch.cat((low & 15, low >> 4), -1)  # of 128 weights: those of the low halves of bytes first
    high = (high[..., None, :] >> torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]) & 3
    values = (low | high.flatten(-2) << 4).flatten(-2)
    units = _halfs(octets_ONW[..., 208:])
    steps = octets_ONW[..., 192:208].contiguous().view(torch.int8).float() * units
    return values.view(torch.int8), steps, None, 32, units


_KINDS: Mapping[str, tuple[int, Callable[[torch.Tensor], _Parts]]] = {
    "Q4_0": (32, _q4_0), "Q4_1": (32, _q4_1), "Q5_0": (32, _q5_0), "Q5_1": (32, _q5_1), "Q8_0": (32, _q8_0),
    "Q4_K": (_SUPER, _q4_k), "Q5_K": (_SUPER, _q5_k), "Q6_K": (_SUPER, _q6_k),
}  # fmt: skip


def _halfs(octets: torch.Tensor) -> torch.Tensor:
    """float32 of float16s."""
    return octets.contiguous().view(torch.float16).float()


def _halves(octets: torch.Tensor) -> torch.Tensor:
    """The low halves of all bytes, then the high ones."""
    return torch.cat((octets & 15, octets >> 4), -1)


def _bits(octets: torch.Tensor) -> torch.Tensor:
    """Bits as bytes, the lowest of the first byte first."""
    return (octets[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)


def _k_nibbles(octets_ON128: torch.Tensor) -> torch.Tensor:
    """Each 32 bytes hold one group in their low halves and the next in the high ones."""
    return _halves(octets_ON128.unflatten(-1, (4, 32))).flatten(-2)


def _k_steps(octets_ONW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Steps and lowest values of the eight groups of each block, 6 bits each, packed into twelve bytes; their units."""
    units, packed = _halfs(octets_ONW[..., :4]), octets_ONW[..., 4:16]
    first, second, last = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    steps = torch.cat((first & 63, last & 15 | first >> 6 << 4), -1)
    lowest = torch.cat((second & 63, last >> 4 | second >> 6 << 4), -1)
    return steps.float() * units[..., :1], -lowest.float() * units[..., 1:], units
