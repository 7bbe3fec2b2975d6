"""Calls of kernels on record: kept, given memory of their own, and made again by baton.engine.cpu.library.

Knows structures of arguments and addresses in them; not what the kernels do.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass

import torch

_ALIGNMENT = 64  # bytes: a line of the processor's cache


class PackedCall(ctypes.Structure):
    """`Call` of source/kernels.cpp."""

    _fields_ = [("function", c_void_p), ("arguments", c_void_p)]


@dataclass(slots=True)
class _Block:
    """Memory that calls `first` to `last` use, at `offset` in the arena."""

    first: int
    last: int
    nbytes: int
    offset: int = 0


class Tape:
    """Calls in their order. Their arguments are kept as they were; what these point to must still be there."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, ctypes.Structure]] = []

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, function: int, arguments: ctypes.Structure) -> None:
        """A call of the function at an address."""
        self._calls.append((function, type(arguments).from_buffer_copy(arguments)))

    def packed(self) -> ctypes.Array[PackedCall]:
        """For the library. Valid while the tape lives, and as long as it stays as it is."""
        calls = [PackedCall(function, ctypes.addressof(arguments)) for function, arguments in self._calls]
        return (PackedCall * len(calls))(*calls)

    def relocate(self, made: Sequence[torch.Tensor], result: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Have the calls use an arena in place of the tensors `made`, which share no memory; those that are not needed
        at the same time share it there. `result` is one of them, or a view of one, and is whole after the last call.

        Returns the arena, uint8 [bytes], and the result's new place.
        """
        made = sorted(made, key=lambda tensor: tensor.data_ptr())
        starts = [tensor.data_ptr() for tensor in made]

        def holder(address: int | None) -> int | None:
            """Index of the tensor that holds `address`."""
            index = bisect.bisect_right(starts, address) - 1 if address else -1
            return index if index >= 0 and address < starts[index] + made[index].nbytes else None

        blocks: dict[int, _Block] = {}
        sites: list[tuple[ctypes.Structure, str, int]] = []
        for at, (_, arguments) in enumerate(self._calls):
            for name in _pointers(arguments):
                index = holder(getattr(arguments, name))
                if index is not None:
                    block = blocks.setdefault(index, _Block(at, at, made[index].nbytes))
                    block.last = at
                    sites.append((arguments, name, index))
        last = holder(result.data_ptr())
        assert last is not None, "the result is none of what was made"
        blocks[last].last = len(self._calls)
        arena = result.new_empty(_place(list(blocks.values())), dtype=torch.uint8)

        def moved(address: int, index: int) -> int:
            return address - starts[index] + blocks[index].offset

        for arguments, name, index in sites:
            setattr(arguments, name, arena.data_ptr() + moved(getattr(arguments, name), index))
        start = moved(result.data_ptr(), last)
        return arena, arena[start : start + result.nbytes].view(result.dtype).view(result.shape)


def _pointers(arguments: ctypes.Structure) -> list[str]:
    return [field[0] for field in arguments._fields_ if field[1] is c_void_p]


def _place(blocks: list[_Block]) -> int:
    """Give each block the lowest place that is free while it is used; returns the bytes of all."""
    placed: list[_Block] = []
    for block in sorted(blocks, key=lambda block: block.first):
        for other in sorted(placed, key=lambda other: other.offset):
            at_once = other.first <= block.last and block.first <= other.last
            if at_once and other.offset < block.offset + block.nbytes and block.offset < other.offset + other.nbytes:
                block.offset = -(-(other.offset + other.nbytes) // _ALIGNMENT) * _ALIGNMENT
        placed.append(block)
    return max((block.offset + block.nbytes for block in placed), default=0)
