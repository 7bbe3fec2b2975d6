"""Marlin's layout of 4-bit weights, undone: values and steps in the order in which a GPU's threads read them.

MARLIN, Frantar et al. 2024 (arXiv 2408.11743). GPTQ checkpoints (`checkpoint_format` marlin, `is_marlin_format`) call
the tensors `B` and `s`, AWQ's (`version` marlin) `qweight` and `scales`. Values are symmetric, around 8.

Inputs and outputs are cut into tiles of 16 x 16, the operand of one tensor core operation. Each of a warp's 32 threads
holds eight values of a tile, as one word: of column t / 4, and of the one 8 further on, the rows 2 (t % 4), the next
one, and those 8 further on. Words of four tiles that lie side by side follow each other, thread by thread. Halves of a
word are interleaved, so that two values are spread out by the same shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton.core.errors import CheckpointError
from baton.engine.model.quantized.bits import unpacked
from baton.engine.model.quantized.gptq import affine, groups_of
from baton.engine.model.quantized.matrix import QuantizedMatrix
from baton.engine.model.tensors import STORED_DTYPES, TensorReader

_BITS = 4
_TILE = 16
_WIDE = 64  # outputs whose words are together
_ZERO = 8


@dataclass(frozen=True, slots=True)
class Marlin:
    """`values` and `steps`: what the checkpoint calls its tensors of these."""

    values: str
    steps: str

    @classmethod
    def of_gptq(cls, config: Mapping[str, Any]) -> Marlin:
        return cls._of(config, "B", "s", config.get("bits", _BITS))

    @classmethod
    def of_awq(cls, config: Mapping[str, Any]) -> Marlin:
        if config.get("zero_point"):
            raise CheckpointError("quantization_config: zero_point is true, which the marlin layout has no place for")
        return cls._of(config, "qweight", "scales", config.get("bits", config.get("w_bit", _BITS)))

    @classmethod
    def _of(cls, config: Mapping[str, Any], values: str, steps: str, bits: Any) -> Marlin:
        if bits != _BITS:
            raise CheckpointError(f"quantization_config: bits is {bits!r}; {_BITS} is supported in the marlin layout")
        if config.get("desc_act"):
            raise CheckpointError("quantization_config: desc_act is true; marlin layouts are read without")
        return cls(values, steps)

    def __call__(self, reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
        outs, fan_in = shape
        if outs % _WIDE or fan_in % _TILE:
            raise CheckpointError(
                f"{name} has {outs} outputs and {fan_in} inputs; the marlin layout has multiples of {_WIDE} and {_TILE}"
            )
        words = reader.raw(f"{name}.{self.values}", (fan_in // _TILE, 2 * outs), {"I32": torch.int32})
        groups = groups_of(reader, name, fan_in, self.steps)
        stored = reader.raw(f"{name}.{self.steps}", (groups, outs), STORED_DTYPES).float()
        zeros = torch.full((1, 1), _ZERO, dtype=torch.uint8)
        return affine(_values(words), _steps(stored).T.contiguous(), zeros, _BITS)


def _values(words: torch.Tensor) -> torch.Tensor:
    """uint8 [out, in] of int32 [in / 16, out * 2]."""
    rows = len(words)
    wide = torch.empty((rows, words.shape[1] * 8 // (_TILE * _WIDE), _TILE * _WIDE), dtype=torch.uint8)
    wide[..., _places()] = unpacked(words, _BITS).view(wide.shape)
    tiles = wide.view(rows, -1, _TILE, _TILE)  # [in tile, out tile, in, out]
    return tiles.permute(1, 3, 0, 2).flatten(2).flatten(0, 1).contiguous()


def _places() -> torch.Tensor:
    """Which of four tiles' values, [tile, in, out], stand in their 128 words, one after the other: int64 [1024]."""
    threads, tiles = torch.arange(32), torch.arange(_WIDE // _TILE)
    rows = 2 * (threads % 4)[:, None] + torch.tensor([0, 1, 8, 9])
    columns = (threads // 4)[:, None] + torch.tensor([0, 8])
    held = _TILE * rows[:, None] + columns[:, :, None]  # [thread, column, row]
    word = held.flatten(1).unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
    return (word[:, None] + _TILE * _TILE * tiles[:, None]).flatten()


def _steps(stored: torch.Tensor) -> torch.Tensor:
    """[groups, out] of steps in the order of threads: of outputs 8 apart where there are groups, else in pairs."""
    groups, outs = stored.shape
    if groups > 1:
        return stored.view(groups, -1, 8, 8).transpose(2, 3).reshape(groups, outs)
    return stored.view(-1, 4, 4, 2).transpose(1, 2).reshape(1, outs)
