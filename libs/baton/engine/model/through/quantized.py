"""Quantized checkpoints of models of `transformers`: their matrices, by Baton's readers.

`transformers` loads a model of the plain architecture, and is handed each matrix spread out when it comes to it. Linear
layers that have one of these matrices unchanged are then multiplied by as the checkpoint stores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from baton.core.errors import CheckpointError
from baton.engine.model.files import tensor_entries
from baton.engine.model.quantized.matrix import QuantizedMatrix
from baton.engine.model.quantized.scheme import Scheme
from baton.engine.model.tensors import STORED_DTYPES, TensorReader
from baton.engine.model.through.architecture import Architecture, Loaded

log = structlog.get_logger(__name__)

_PACKED = (".qweight", ".weight_packed", ".B")  # ends of names that only matrices of few bits have
_WHOLE = ".weight"
_WHOLE_NUMBERS = {"I64": torch.int64, "I32": torch.int32}
_PLAIN = {*STORED_DTYPES, *_WHOLE_NUMBERS, "BOOL", "F64"}  # of what is left beside matrices of few bits


class QuantizedTensors:
    """The tensors of a quantized checkpoint folder, of which nothing is read before it is asked for. Any thread."""

    def __init__(self, folder: Path, scheme: Scheme, dtype: torch.dtype) -> None:
        """`dtype`: of what is spread out. Raises CheckpointError naming a tensor that is stored in no way known."""
        self._folder = folder
        self._scheme = scheme
        self._entries = tensor_entries(folder)
        self._reader = TensorReader(self._entries, dtype, torch.device("cpu"))
        self._names = frozenset(filter(None, map(self._matrix_name, self._entries)))
        self._shapes: dict[str, tuple[int, int]] = {}
        self._rows_are_inputs: set[str] = set()
        self._prefix = ""
        for name in self._plain_names():
            entry = self._entries[name]
            if entry.dtype not in _PLAIN:
                raise CheckpointError(f"tensor {name} in {entry.file} is stored as {entry.dtype}, in no way known here")

    def load(self, architecture: Architecture, options: Mapping[str, Any]) -> Loaded:
        """The model, its matrices spread out."""
        config = architecture.config
        for part in (config, *(getattr(config, name) for name in config.sub_configs)):
            if hasattr(part, "quantization_config"):  # or transformers would do it, by packages that need a GPU
                del part.quantization_config
        empty = architecture.empty()
        options = {**options, "config": config, "key_mapping": dict(architecture.names) or None}
        loaded: Loaded = type(empty).from_pretrained(None, state_dict=self._state_dict(empty), **options)
        return loaded

    def _state_dict(self, model: PreTrainedModel) -> dict[str, Any]:
        """What to load `model`, which may have no memory yet, from: by name, what gives its tensor for `[...]`."""
        modules, self._prefix = dict(model.named_modules()), model.base_model_prefix
        for name in self._names:
            module = next((modules[each] for each in _names_in_model(name, self._prefix) if each in modules), None)
            self._shapes[name] = self._shape(name, module)
            if isinstance(module, Conv1D):
                self._rows_are_inputs.add(name)
        files = {entry.file: safe_open(entry.file, "pt") for entry in self._entries.values()}
        plain = {name: files[self._entries[name].file].get_slice(name) for name in self._plain_names()}
        return {**plain, **{name + _WHOLE: _Spread(self, name) for name in self._names}}

    def matrix_of(self, layer: str, weight: torch.Tensor) -> QuantizedMatrix | None:
        """How the checkpoint stores `weight` [outs, in], the matrix of the model's module `layer`; None: in no few
        bits, or by another name, or the model has changed it."""
        for name in _names_in_model(layer, self._prefix):
            if name in self._shapes and self._shapes[name] == tuple(weight.shape):
                stored = self._scheme.matrix(self._reader, name, self._shapes[name])
                if isinstance(stored, QuantizedMatrix) and torch.equal(stored.dense(weight.dtype), weight):
                    return stored
        return None

    def tell(self, kept: int) -> None:
        """Log what became of the matrices."""
        spread_out = len(self._names) - kept
        log.info("quantized checkpoint", method=self._scheme.method, kept=kept, spread_out=spread_out)

    def spread(self, name: str) -> torch.Tensor:
        stored = self._scheme.matrix(self._reader, name, self._shapes[name])
        weight = stored.dense(self._reader.dtype) if isinstance(stored, QuantizedMatrix) else stored
        return weight.T.contiguous() if name in self._rows_are_inputs else weight

    def _matrix_name(self, tensor: str) -> str | None:
        """The matrix of few bits that a tensor is the main part of."""
        for end in _PACKED:
            if tensor.endswith(end):
                return tensor.removesuffix(end)
        if tensor.endswith(_WHOLE) and self._entries[tensor].dtype not in STORED_DTYPES:
            return tensor.removesuffix(_WHOLE)
        return None

    def _plain_names(self) -> list[str]:
        """Tensors that belong to no matrix of few bits, and biases."""
        found = []
        for tensor in self._entries:
            parents = [tensor[:at] for at, letter in enumerate(tensor) if letter == "."]
            if tensor.endswith(".bias") or not any(parent in self._names for parent in parents):
                found.append(tensor)
        return found

    def _shape(self, name: str, module: nn.Module | None) -> tuple[int, int]:
        """[outs, in]: of the model's own matrix, else, where it has many in one, what the tensors say."""
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() == 2:
            outs, fan_in = weight.shape
            return (fan_in, outs) if isinstance(module, Conv1D) else (outs, fan_in)
        return self._stored_shape(name)

    def _stored_shape(self, name: str) -> tuple[int, int]:
        whole, words, packed = (self._entries.get(name + end) for end in (_WHOLE, *_PACKED[:2]))
        if whole is not None and len(whole.shape) == 2 and (whole.dtype.startswith("F8") or whole.dtype == "I8"):
            return whole.shape[0], whole.shape[1]
        if words is not None and self._scheme.method == "awq":
            return words.shape[1] * 8, words.shape[0]
        scales, zeros = (self._entries.get(name + end) for end in (".scales", ".qzeros"))
        if words is not None and scales is not None and zeros is not None:
            return words.shape[1], words.shape[0] * scales.shape[1] // zeros.shape[1]
        if packed is not None and packed.dtype == "U8":
            return packed.shape[0], packed.shape[1] * 2
        if packed is not None:
            outs, fan_in = self._reader.raw(f"{name}.weight_shape", (2,), _WHOLE_NUMBERS).tolist()
            return outs, fan_in
        raise CheckpointError(f"how many outputs and inputs {name} has is not known: neither tensors nor the model say")


class _Spread:
    """A tensor that is made when it is taken."""

    def __init__(self, tensors: QuantizedTensors, name: str) -> None:
        self._tensors = tensors
        self._name = name

    def __getitem__(self, all_of_it: Any) -> torch.Tensor:
        return self._tensors.spread(self._name)


def _names_in_model(name: str, prefix: str) -> tuple[str, ...]:
    """A module's possible names: models are stored with and without the prefix of their body."""
    return name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")
