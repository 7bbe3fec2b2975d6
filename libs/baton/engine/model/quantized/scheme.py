"""Which format a checkpoint's matrices are stored in, by what config.json says of its quantization.

Formats differ in their tensors only; what reads them is a function from a matrix's name to what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baton.core.errors import CheckpointError
from baton.engine.model.files import read_json
from baton.engine.model.quantized import bitsandbytes, gguf, gptq
from baton.engine.model.quantized.compressed_tensors import CompressedTensors
from baton.engine.model.quantized.fp8 import Float8
from baton.engine.model.quantized.gptq import Gptq
from baton.engine.model.quantized.marlin import Marlin
from baton.engine.model.quantized.matrix import QuantizedMatrix
from baton.engine.model.quantized.modelopt import ModelOpt
from baton.engine.model.tensors import TensorReader
from baton.models.gguf.config import METHOD as GGUF

# The named matrix [outs, in], without `.weight` at the end of its name; CheckpointError names the tensor that is
# missing or is not what it should be. A tensor is of the reader's dtype, on its device.
ReadMatrix = Callable[[TensorReader, str, tuple[int, int]], QuantizedMatrix | torch.Tensor]

_MODELOPT_FILE = "hf_quant_config.json"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint stores the matrices that it does not store as plain numbers."""

    method: str
    matrix: ReadMatrix
    rotates_neighbours: bool = False  # queries and keys have their rows in that order, whatever the family's own


def scheme_of(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """The scheme that `config`, a config.json, or the folder's hf_quant_config.json names; None: there is none.

    Raises CheckpointError for one that is not supported.
    """
    found = _described(folder, config)
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{folder / 'config.json'}: quantization_config is {found!r}; it must be an object")
    method = str(found.get("quant_method"))
    if method not in _SCHEMES:
        raise CheckpointError(
            f"{folder / 'config.json'}: the checkpoint is quantized by quant_method {method}, which is not "
            f"supported; supported are {', '.join(_SCHEMES)}"
        )
    try:
        return Scheme(method, _SCHEMES[method](found), found.get("rotates_neighbours") is True)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error.message}") from None


def _described(folder: Path, config: Mapping[str, Any]) -> Any:
    text = config.get("text_config")
    found = config.get("quantization_config") or (text or {}).get("quantization_config")
    if found or not (folder / _MODELOPT_FILE).is_file():
        return found
    described = read_json(folder / _MODELOPT_FILE).get("quantization")
    return {**described, "quant_method": "modelopt"} if isinstance(described, Mapping) else None


def _float8(config: Mapping[str, Any]) -> ReadMatrix:
    block = config.get("weight_block_size")
    if block is None:
        return Float8()
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block):
        raise CheckpointError(f"quantization_config: weight_block_size is {block!r}; it must be two sizes")
    return Float8((block[0], block[1]))


def _gptq(config: Mapping[str, Any]) -> ReadMatrix:
    in_marlin = config.get("is_marlin_format") or config.get("checkpoint_format") == "marlin"
    return Marlin.of_gptq(config) if in_marlin else Gptq.of(config)


def _awq(config: Mapping[str, Any]) -> ReadMatrix:
    if str(config.get("version")).lower() == "marlin":
        return Marlin.of_awq(config)
    gptq.check_awq(config)
    return gptq.awq


def _mxfp4_experts(config: Mapping[str, Any]) -> ReadMatrix:
    """Of gpt-oss: only its experts, which stand in tensors of all of them, are not plain numbers."""
    return _plain


def _plain(reader: TensorReader, name: str, shape: tuple[int, int]) -> torch.Tensor:
    return reader.one(f"{name}.weight", shape)


_SCHEMES: Mapping[str, Callable[[Mapping[str, Any]], ReadMatrix]] = {
    "fp8": _float8,
    "fbgemm_fp8": lambda config: Float8(),
    "awq": _awq,
    "gptq": _gptq,
    "marlin": Marlin.of_gptq,
    "bitsandbytes": lambda config: bitsandbytes.matrix,
    "compressed-tensors": CompressedTensors.of,
    "modelopt": ModelOpt.of,
    "mxfp4": _mxfp4_experts,
    GGUF: lambda config: gguf.matrix,
}
