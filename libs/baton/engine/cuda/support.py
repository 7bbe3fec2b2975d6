"""What of the GPU path can be used here, and why not: asked when a worker starts, and by `baton check-env`."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from baton.core.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")


def cuda_problem() -> str | None:
    """Why torch can use no GPU here; None when it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU, or no driver for it"
    return None


def pick_device(device: str) -> str:
    """cpu or cuda: what `device` says; auto is a GPU where there is one. Raises ConfigError when it cannot be had."""
    if device not in DEVICES:
        raise ConfigError(f"device is {device!r}; it must be {', '.join(DEVICES)}")
    problem = cuda_problem() if device != "cpu" else None
    if device == "cuda" and problem is not None:
        raise ConfigError(f"device = cuda cannot be had: {problem}")
    return "cuda" if device != "cpu" and problem is None else "cpu"


def problems() -> list[str]:
    """What of the GPU path cannot be used here, and why; empty when all of it can."""
    if (problem := cuda_problem()) is not None:
        return [problem]
    try:
        import_flashinfer()
    except ImportError as error:
        return [f"no fast attention and no CUDA graphs: {error}"]
    return []


def import_flashinfer() -> ModuleType:
    """The package. Raises ImportError, saying why, where it does not load."""
    try:
        return importlib.import_module("flashinfer")
    except ImportError:
        raise
    except Exception as error:  # it looks for compilers and drivers as it loads
        raise ImportError(f"flashinfer does not load: {type(error).__name__}: {error}") from error
