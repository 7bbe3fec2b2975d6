"""From a checkpoint to what runs it: the native decoder where it knows the architecture, else `transformers`.

The first thing that a worker, and an engine in one's own process, does with a model that generates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog
import torch

from baton.core.errors import ConfigError
from baton.engine.batch import ModelRunner
from baton.engine.model.config import NotNative, load_config
from baton.engine.model.tensors import Progress
from baton.engine.pooling.pooler import Pooler
from baton.engine.pooling.step import PoolingModel
from baton.engine.runner import TorchModelRunner

log = structlog.get_logger(__name__)

MODEL_BACKENDS = ("auto", "native", "transformers")


class LoadedRunner(ModelRunner, Protocol):
    """A model as it was loaded: what those ask for who make its pool."""

    device: torch.device
    pooler: Pooler
    model_backend: str  # whose code it is: native or transformers

    @property
    def can_capture(self) -> bool:
        """Whether decode steps can be CUDA graphs."""

    def capture(self, sizes: Sequence[int], progress: Progress) -> None:
        """Make CUDA graphs of decode steps, where `can_capture`."""

    def unbind_pool(self) -> None:
        """Let go of the pool, so that its memory can be given back."""


def load_runner(
    path: str | Path,
    *,
    model_backend: str = "auto",
    trust_remote_code: bool = False,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    page_size: int = 16,
    device: str = "cpu",
    progress: Progress | None = None,
    max_context_tokens: int | None = None,
    quantization: str = "none",
    deterministic: bool = False,
) -> LoadedRunner:
    """Load the checkpoint folder `path`; other parameters as for TorchModelRunner.load.

    `model_backend` is native, transformers, or auto: native where the architecture is. `trust_remote_code`: code that
    comes with the checkpoint may run, in `transformers`. Raises CheckpointError, ConfigError.
    """
    if model_backend not in MODEL_BACKENDS:
        raise ConfigError(f"model_backend is {model_backend!r}; it must be {', '.join(MODEL_BACKENDS)}")
    if model_backend == "native" or (model_backend == "auto" and _is_native(path)):
        return TorchModelRunner.load(
            path, dtype, page_size, device, progress, max_context_tokens, quantization,
            deterministic=deterministic, kv_dtype=kv_dtype,
        )  # fmt: skip
    if deterministic:
        raise ConfigError(f"deterministic = true is to be had for native models only; {path} runs through transformers")
    from baton.engine.model.through.runner import ThroughRunner  # transformers takes seconds to import

    runner = ThroughRunner.load(
        path, dtype, page_size, device, progress, max_context_tokens, kv_dtype, trust_remote_code=trust_remote_code,
        quantization=quantization,
    )  # fmt: skip
    log.info("the model runs through transformers: its own code, on Baton's pages", passes=runner.passes.value)
    return runner


def pooling_model(runner: LoadedRunner) -> PoolingModel | None:
    """What answers pooling requests: native models do, and those of `transformers` whose hidden states can be had."""
    if isinstance(runner, TorchModelRunner):
        return runner
    from baton.engine.model.through.runner import ThroughRunner

    return runner if isinstance(runner, ThroughRunner) and runner.has_states else None


def _is_native(path: str | Path) -> bool:
    try:
        load_config(path)
    except NotNative:
        return False
    return True
