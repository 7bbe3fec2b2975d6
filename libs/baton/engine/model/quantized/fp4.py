"""4-bit floats (E2M1) with a scale per group of inputs: NVFP4, and MXFP4 (OCP Microscaling Formats v1.0).

What the 16 of them mean is a table of whole numbers, doubled.
"""

from __future__ import annotations

import torch

from baton.core.errors import CheckpointError
from baton.engine.model.quantized.bits import E2M1_UNIT, e2m1_table, nibbles
from baton.engine.model.quantized.matrix import FLOAT8, QuantizedMatrix
from baton.engine.model.tensors import STORED_DTYPES, TensorReader

_NV_GROUP, MX_GROUP = 16, 32
_BYTES = {"U8": torch.uint8}
_EXPONENT_BIAS = 127
EXPONENTS = {"U8": torch.uint8, "F8_E8M0": torch.float8_e8m0fnu}


def nvfp4(
    reader: TensorReader, weight: str, scale: str, whole_scale: str, shape: tuple[int, int], inverse: bool = True
) -> QuantizedMatrix:
    """8-bit floats scale groups of 16, and `whole_scale` all of them: it divides, or multiplies unless `inverse`."""
    outs, fan_in = shape
    values = nibbles(reader.raw(weight, (outs, fan_in // 2), _BYTES))
    scales = reader.raw(scale, (outs, fan_in // _NV_GROUP), {"F8_E4M3": FLOAT8}).float()
    stored = reader.entries[whole_scale].shape if whole_scale in reader.entries else (1,)
    whole = reader.raw(whole_scale, stored, STORED_DTYPES).float()
    if whole.numel() != 1:
        raise CheckpointError(f"tensor {whole_scale} has shape {list(stored)}; one number is supported")
    factor = E2M1_UNIT * (1 / whole.item() if inverse else whole.item())
    return QuantizedMatrix(values, scales * factor, table=e2m1_table())


def with_exponents(reader: TensorReader, weight: str, scale: str, shape: tuple[int, int]) -> QuantizedMatrix:
    """Powers of two, by their biased exponents, scale groups of 32."""
    outs, fan_in = shape
    codes = reader.raw(weight, (outs, fan_in // 2), _BYTES)
    return mxfp4(codes, reader.raw(scale, (outs, fan_in // MX_GROUP), EXPONENTS).view(torch.uint8))


def mxfp4(codes: torch.Tensor, exponents: torch.Tensor) -> QuantizedMatrix:
    """Of uint8 [outs, in / 2], two floats in each, the first in the low half, and biased exponents [outs, in / 32]."""
    steps = E2M1_UNIT * torch.exp2(exponents.float() - _EXPONENT_BIAS)
    return QuantizedMatrix(nibbles(codes), steps, table=e2m1_table())
