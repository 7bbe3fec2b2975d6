"""bitsandbytes: nf4 and fp4 in blocks of the flattened matrix, whose scales may be quantized again; and int8.

4 bits (QLoRA, Dettmers et al. 2023) name places in a table that the checkpoint brings along. Matrices whose rows are no
whole blocks are spread out when they are read. 8 bits have a scale per output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from baton.core.errors import CheckpointError
from baton.engine.model.quantized.matrix import QuantizedMatrix
from baton.engine.model.tensors import TensorReader

_BYTES = {"U8": torch.uint8}
_FLOATS = {"F32": torch.float32}
_KINDS = ("nf4", "fp4")
_INT8_MOST = 127.0


def matrix(reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix | torch.Tensor:
    weight = reader.entries.get(f"{name}.weight")
    if weight is not None and weight.dtype == "I8":
        return _int8(reader, name, shape)
    state = _state(reader, name, shape)
    count, block = shape[0] * shape[1], int(state["blocksize"])
    packed = reader.raw(f"{name}.weight", (-(-count // 2), 1), _BYTES).flatten()
    codes = torch.stack((packed >> 4, packed & 0x0F), dim=1).flatten()[:count]
    table = reader.raw(f"{name}.weight.quant_map", (16,), _FLOATS)
    scales = _scales(reader, name, state, -(-count // block))
    if shape[1] % block == 0:
        return QuantizedMatrix(codes.view(shape), scales.reshape(shape[0], -1).clone(), table=table.clone())
    spread = table[codes.int()]
    spread *= scales.repeat_interleave(block)[:count]
    return spread.view(shape).to(reader.dtype).to(reader.device)


def _int8(reader: TensorReader, name: str, shape: tuple[int, int]) -> QuantizedMatrix:
    layout = reader.entries.get(f"{name}.weight_format")
    if layout is not None and reader.raw(f"{name}.weight_format", layout.shape, _BYTES).any():
        raise CheckpointError(f"tensor {name}.weight_format names a layout of a GPU kernel; rows (0) are supported")
    values = reader.raw(f"{name}.weight", shape, {"I8": torch.int8}).clone()
    return QuantizedMatrix(values, reader.raw(f"{name}.SCB", (shape[0],), _FLOATS)[:, None] / _INT8_MOST)


def _state(reader: TensorReader, name: str, shape: tuple[int, int]) -> Mapping[str, Any]:
    """What the checkpoint says of the matrix, in JSON that stands in a tensor of bytes."""
    kinds = [f"{name}.weight.quant_state.bitsandbytes__{kind}" for kind in _KINDS]
    found = next((kind for kind in kinds if kind in reader.entries), None)
    if found is None:
        raise CheckpointError(
            f"the checkpoint has no tensor {kinds[0]}, nor one of {_KINDS[1]}, which its config.json asks for"
        )
    text = reader.raw(found, reader.entries[found].shape, _BYTES)
    try:
        state = json.loads(bytes(text.tolist()))
        stored = tuple(state["shape"])
        int(state["blocksize"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"tensor {found} is not what bitsandbytes writes ({error!r})") from None
    if stored != shape:
        raise CheckpointError(f"tensor {found} says shape {list(stored)}; its config.json asks for {list(shape)}")
    return state


def _scales(reader: TensorReader, name: str, state: Mapping[str, Any], blocks: int) -> torch.Tensor:
    """float32 [blocks], spread out where they are quantized themselves."""
    if "nested_blocksize" not in state:
        return reader.raw(f"{name}.weight.absmax", (blocks,), _FLOATS)
    block = int(state["nested_blocksize"])
    codes = reader.raw(f"{name}.weight.absmax", (blocks,), _BYTES)
    table = reader.raw(f"{name}.weight.nested_quant_map", (256,), _FLOATS)
    scales = reader.raw(f"{name}.weight.nested_absmax", (-(-blocks // block),), _FLOATS)
    return table[codes.int()] * scales.repeat_interleave(block)[:blocks] + float(state["nested_offset"])
