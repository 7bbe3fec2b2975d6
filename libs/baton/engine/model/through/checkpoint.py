"""A checkpoint as a model of `transformers`, with every tensor that it needs, and nothing made up.

`transformers` fills what a checkpoint lacks with random numbers and warns; here that is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from baton.core.errors import CheckpointError
from baton.engine.model.files import read_config, tensor_entries
from baton.engine.model.quantized.scheme import scheme_of
from baton.engine.model.through.architecture import Architecture, Loaded, brief
from baton.engine.model.through.quantized import QuantizedTensors
from baton.models.gguf.config import METHOD as GGUF

log = structlog.get_logger(__name__)

NO_LIMIT_TOKENS = 1 << 17  # taken where a config knows none
_LIMIT_KEYS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_target_positions")
_LOADING = threading.Lock()  # transformers changes torch's defaults meanwhile, for all threads
_NAMED = 3  # of the tensors that are wrong


def load_transformers(
    folder: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool
) -> tuple[PreTrainedModel, QuantizedTensors | None]:
    """The causal model of a checkpoint folder, for evaluation, with its own attention; and of a quantized one, whose
    matrices are spread out in it, what they are stored as.

    Raises CheckpointError: what architecture is not known, which tensors are missing or of another shape.
    """
    tensor_entries(folder)  # a file that is missing or truncated is named here
    architecture = Architecture.of(folder, trust_remote_code)
    scheme = scheme_of(folder, read_config(folder))
    if scheme is not None and scheme.method == GGUF:
        raise CheckpointError(f"{folder}: GGUF files run for native families only, by native code")
    stored = QuantizedTensors(folder, scheme, dtype) if scheme is not None else None
    transformers_logging.disable_progress_bar()
    try:
        with _LOADING, _silence():
            model, told = _load(folder, architecture, dtype, stored)
    except (ValueError, ImportError, RuntimeError, TypeError, AttributeError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{folder}: transformers {transformers.__version__} cannot load it: {brief(error)}"
        ) from error
    _check(folder, told)
    return model.eval().requires_grad_(False).to(device), stored


@contextmanager
def _silence() -> Iterator[None]:
    """What it would warn of, missing tensors among it, is an error here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _load(folder: Path, architecture: Architecture, dtype: torch.dtype, stored: QuantizedTensors | None) -> Loaded:
    """All of the model, or the part that generates text where the rest needs packages that are not there."""
    options: dict[str, Any] = {
        "dtype": dtype, "attn_implementation": "eager", "output_loading_info": True, "ignore_mismatched_sizes": True,
    }  # fmt: skip
    try:
        return architecture.load(folder, options) if stored is None else stored.load(architecture, options)
    except ImportError as error:
        alone = architecture.text_alone()
        if alone is None:
            raise
        log.info("the model's text part is loaded alone", why=brief(error))
        return alone.load(folder, options) if stored is None else stored.load(alone, options)


def context_tokens(model: PreTrainedModel) -> int:
    """Longest request that the model's positions, and the way they rotate, allow.

    Where rotations change with the longest sequence of a batch (dynamic, longrope), or attention becomes sparse
    (BigBird), contexts end before they do: cached keys could not be shared otherwise.
    """
    text = model.config.get_text_config(decoder=True)
    named = [getattr(text, key, None) for key in _LIMIT_KEYS]
    limit = next((value for value in named if isinstance(value, int) and value > 0), NO_LIMIT_TOKENS)
    if model.config.model_type == "big_bird" and text.attention_type == "block_sparse":
        limit = min(limit, (5 + 2 * text.num_random_blocks) * text.block_size)  # up to which it attends to everything
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if not kinds or not isinstance(getattr(module, "config", None), PretrainedConfig):
            continue
        if "longrope" in (kinds.values() if isinstance(kinds, dict) else (kinds,)):
            limit = min(limit, _original_tokens(module.config) or limit)
    return limit


def _original_tokens(config: PretrainedConfig) -> int | None:
    """The least context that rotations were made for, of any layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    places = [rope, *(part for part in rope.values() if isinstance(part, dict)), vars(config)]
    values = [place.get("original_max_position_embeddings") for place in places]
    return min((value for value in values if isinstance(value, int)), default=None)


def _check(folder: Path, told: dict[str, Any]) -> None:
    missing, mismatched = sorted(told["missing_keys"]), sorted(told["mismatched_keys"])
    if missing:
        raise CheckpointError(
            f"the checkpoint {folder} has no tensor {_first(missing)}, which its config.json asks for"
        )
    if mismatched:
        name, stored, wanted = mismatched[0][:3]
        raise CheckpointError(
            f"tensor {name} in {folder} has shape {list(stored)}; its config.json asks for {list(wanted)}"
        )
    if told.get("error_msgs"):
        raise CheckpointError(f"{folder}: {'; '.join(map(str, told['error_msgs']))}")
    if told["unexpected_keys"]:
        log.info("tensors that the model does not use", tensors=_first(sorted(told["unexpected_keys"])))


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
