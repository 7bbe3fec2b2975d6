"""GPTQ and AWQ: 4 or 8 bits in words of 32, [in, out], with a scale and a zero point per group of inputs.

Layouts: GPTQ packs inputs of `qweight` into words and counts zero points from 1 (`checkpoint_format` gptq; from 0 in
gptq_v2); with `desc_act` it has inputs in an order of their own, so that `g_idx` says which group each is of. AWQ
(`gemm`) packs outputs, eight to a word, in the order of its kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from baton.core.errors import CheckpointError
from baton.engine.model.quantized.bits import centred, unpacked
from baton.engine.model.quantized.matrix import QuantizedMatrix
from baton.engine.model.tensors import STORED_DTYPES, TensorReader

_WORD = {"I32": torch.int32}
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the kth of eight outputs stands in a word
_AWQ_BITS = 4
_AWQ_GROUPS = 8  # outputs of a word


@dataclass(frozen=True, slots=True)
class Gptq:
    """`first_zero`: what a stored zero point of 0 means."""

    bits: int
    first_zero: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Gptq:
        bits, layout = config.get("bits"), config.get("checkpoint_format", "gptq")
        if bits not in (4, 8):
            raise CheckpointError(f"quantization_config: bits is {bits!r}; 4 and 8 are supported for gptq")
        if layout not in ("gptq", "gptq_v2"):
            raise CheckpointError(
                f"quantization_config: checkpoint_format is {layout!r}; gptq, gptq_v2 and marlin are supported"
            )
        if config.get("pack_dtype", "int32") != "int32":
            raise CheckpointError(f"quantization_config: pack_dtype is {config['pack_dtype']!r}; int32 is supported")
        return cls(int(bits), 1 if layout == "gptq" else 0)

    def __call__(self, reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
        outs, fan_in = shape
        many = 32 // self.bits
        words = reader.raw(f"{name}.qweight", (fan_in // many, outs), _WORD)
        values = unpacked(words.T.contiguous(), self.bits)
        groups = groups_of(reader, name, fan_in)
        zeros = unpacked(reader.raw(f"{name}.qzeros", (groups, outs // many), _WORD), self.bits)
        zeros = zeros + self.first_zero & 2**self.bits - 1  # [groups, outs]; the sum of bytes wraps
        steps = reader.raw(f"{name}.scales", (groups, outs), STORED_DTYPES).float()
        if f"{name}.g_idx" in reader.entries:
            group_of = reader.raw(f"{name}.g_idx", (fan_in,), _WORD).long()
            return mixed(f"{name}.g_idx", values, steps.T.contiguous(), zeros.T.contiguous(), group_of, self.bits)
        return affine(values, steps.T.contiguous(), zeros.T.contiguous(), self.bits)


def awq(reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
    outs, fan_in = shape
    words = reader.raw(f"{name}.qweight", (fan_in, outs // _AWQ_GROUPS), _WORD)
    groups = groups_of(reader, name, fan_in)
    zeros = _awq_unpacked(reader.raw(f"{name}.qzeros", (groups, outs // _AWQ_GROUPS), _WORD))
    steps = reader.raw(f"{name}.scales", (groups, outs), STORED_DTYPES).float()
    return affine(_awq_unpacked(words).T.contiguous(), steps.T.contiguous(), zeros.T.contiguous(), _AWQ_BITS)


def check_awq(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for what `awq` does not read."""
    bits, version = config.get("bits", config.get("w_bit")), str(config.get("version", "gemm")).lower()
    if bits != _AWQ_BITS:
        raise CheckpointError(f"quantization_config: bits is {bits!r}; {_AWQ_BITS} is supported for awq")
    if version != "gemm":
        raise CheckpointError(
            f"quantization_config: version is {version!r}, a layout of another kernel; gemm and marlin are supported "
            "for awq"
        )


def affine(values: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor, bits: int) -> QuantizedMatrix:
    """Of uint8 `values` [outs, in] and `zeros` [outs, groups]: a weight is step * (value - zero)."""
    middle = 2 ** (bits - 1)
    if bits == 8:
        values, lowest = centred(values), (middle - zeros.float()) * steps
        return QuantizedMatrix(values, steps, None if (zeros == middle).all() else lowest)
    if (zeros == middle).all():
        return QuantizedMatrix(values, steps, None, middle)
    return QuantizedMatrix(values, steps, -zeros.float() * steps)


def mixed(
    name: str, values: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor, group_of: torch.Tensor, bits: int
) -> QuantizedMatrix:
    """As `affine`, where input i is of group `group_of[i]`, which the tensor `name` says: with inputs of a group side
    by side if all groups have as many, else with a step for each input."""
    (outs, fan_in), groups = values.shape, steps.shape[1]
    if group_of.min() < 0 or group_of.max() >= groups:
        raise CheckpointError(f"tensor {name} names a group that is not among the {groups} there are")
    order = group_of.argsort(stable=True)
    if fan_in % groups or (group_of.bincount(minlength=groups) != fan_in // groups).any():
        return affine(values, steps[:, group_of], zeros.expand(outs, groups)[:, group_of], bits)
    if torch.equal(group_of, group_of[order]):
        return affine(values, steps, zeros, bits)
    return replace(affine(values[:, order], steps, zeros, bits), order=order)


def groups_of(reader: TensorReader, name: str, fan_in: int, scales: str = "scales") -> int:
    """Groups of inputs that the matrix is divided into: as many rows as `scales` has."""
    entry = reader.entries.get(f"{name}.{scales}")
    if entry is None:
        raise CheckpointError(f"the checkpoint has no tensor {name}.{scales}, which its config.json asks for")
    groups = entry.shape[0] if entry.shape else 0
    if groups == 0 or fan_in % groups:
        raise CheckpointError(
            f"tensor {name}.{scales} in {entry.file} has shape {list(entry.shape)}: {fan_in} inputs are not "
            f"{groups} equal groups"
        )
    return groups


def _awq_unpacked(words: torch.Tensor) -> torch.Tensor:
    """uint8 [n, outs] of int32 [n, outs / 8]."""
    return unpacked(words, _AWQ_BITS).unflatten(-1, (-1, _AWQ_GROUPS))[..., list(_AWQ_ORDER)].flatten(-2)
