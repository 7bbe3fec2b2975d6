"""compressed-tensors: whole numbers of 4 and 8 bits, packed into words or not, 8-bit floats, and 4-bit floats.

What a matrix is stored as is plain from its tensors, so that lists of modules that are quantized or ignored are not
needed. Quantized activations (`input_activations`) are not followed: activations keep their bits here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from baton.core.errors import CheckpointError
from baton.engine.model.quantized.bits import unpacked
from baton.engine.model.quantized.fp4 import EXPONENTS, nvfp4, with_exponents
from baton.engine.model.quantized.fp8 import SCALE_DTYPES, Float8
from baton.engine.model.quantized.gptq import affine, mixed
from baton.engine.model.quantized.matrix import QuantizedMatrix
from baton.engine.model.tensors import TensorReader

_FORMATS = (
    "dense", "float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mixed-precision",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    float8: Float8

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CompressedTensors:
        groups = [group for group in (config.get("config_groups") or {}).values() if isinstance(group, Mapping)]
        for found in (config.get("format"), *(group.get("format") for group in groups)):
            if found not in (None, *_FORMATS):
                raise CheckpointError(f"quantization_config: format is {found!r}; supported are {', '.join(_FORMATS)}")
        sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparsity != "dense":
            raise CheckpointError(f"quantization_config: sparsity_config has format {sparsity!r}; dense is supported")
        if (config.get("transform_config") or {}).get("config_groups"):
            raise CheckpointError("quantization_config: transform_config (rotated weights) is not supported")
        blocks: set[tuple[int, int]] = {
            tuple((group.get("weights") or {}).get("block_structure") or ()) for group in groups
        } - {()}
        if len(blocks) > 1:
            raise CheckpointError(f"quantization_config: block_structure is one of {sorted(blocks)}; one is supported")
        return cls(Float8(*blocks))

    def __call__(self, reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
        whole, packed = reader.entries.get(f"{name}.weight"), reader.entries.get(f"{name}.weight_packed")
        if packed is not None and packed.dtype == "U8":
            return _fp4(reader, name, shape)
        if packed is None and whole is not None:
            return self.float8(reader, name, shape) if whole.dtype.startswith("F8") else _int8(reader, name, shape)
        return _packed(reader, name, shape)


def _fp4(reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
    names, scale = (f"{name}.weight_packed", f"{name}.weight_scale"), reader.entries.get(f"{name}.weight_scale")
    if f"{name}.weight_zero_point" in reader.entries:
        raise CheckpointError(f"tensor {name}.weight_zero_point: zero points of 4-bit floats are not supported")
    if scale is not None and scale.dtype in EXPONENTS:
        return with_exponents(reader, *names, shape)
    return nvfp4(reader, *names, f"{name}.weight_global_scale", shape)


def _packed(reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
    """Words of 32 bits, each value more by half of the range."""
    outs, fan_in = shape
    packed = reader.entries.get(f"{name}.weight_packed")
    bits = packed.shape[-1] * 32 // fan_in if packed is not None and packed.shape else 4
    if bits not in (4, 8):
        raise CheckpointError(f"tensor {name}.weight_packed has {bits} bits per weight; 4 and 8 are supported")
    words = reader.raw(f"{name}.weight_packed", (outs, fan_in * bits // 32), {"I32": torch.int32})
    steps = _steps(reader, name, shape)
    groups = steps.shape[1]
    zeros = torch.full((1, 1), 2 ** (bits - 1), dtype=torch.uint8)
    if f"{name}.weight_zero_point" in reader.entries:
        packed_zeros = reader.raw(f"{name}.weight_zero_point", (outs * bits // 32, groups), {"I32": torch.int32})
        zeros = unpacked(packed_zeros.T.contiguous(), bits).T.contiguous()
    values = unpacked(words, bits)
    if f"{name}.weight_g_idx" in reader.entries:
        group_of = reader.raw(f"{name}.weight_g_idx", (fan_in,), {"I32": torch.int32, "I64": torch.int64}).long()
        return mixed(f"{name}.weight_g_idx", values, steps, zeros, group_of, bits)
    return affine(values, steps, zeros, bits)


def _int8(reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
    values = reader.raw(f"{name}.weight", shape, {"I8": torch.int8}).clone()
    steps, lowest = _steps(reader, name, shape), None
    if f"{name}.weight_zero_point" in reader.entries:
        stored = reader.entries[f"{name}.weight_zero_point"].shape
        zeros = reader.raw(f"{name}.weight_zero_point", stored, {"I8": torch.int8}).float()
        if zeros.any():
            lowest = (-zeros.reshape(-1, steps.shape[1]) * steps).contiguous()
    return QuantizedMatrix(values, steps, lowest)


def _steps(reader: TensorReader, name: str, shape: tuple[int, int]) -> torch.Tensor:
    """float32 [outs, groups] of a scale per tensor, per output, or per group of inputs of each."""
    (outs, fan_in), entry = shape, reader.entries.get(f"{name}.weight_scale")
    found = () if entry is None else entry.shape
    if entry is not None and found in ((), (1,), (1, 1)):
        return reader.raw(f"{name}.weight_scale", found, SCALE_DTYPES).float().reshape(1, 1).repeat(outs, 1)
    groups = found[1] if len(found) == 2 and found[1] and fan_in % found[1] == 0 else 1
    return reader.raw(f"{name}.weight_scale", (outs, groups), SCALE_DTYPES).float().clone()
