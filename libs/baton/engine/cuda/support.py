"""What of the GPU path can be used here, and why not: asked when a worker starts, and by `baton check-env`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch

from baton.core.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")
_FLOAT8_GROUPS_SINCE = (12, 9)  # CUDA, whose cuBLAS brings them


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


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Which of torch's products of few bits a GPU computes. `float8`: of 8-bit floats, with a step for each row of
    both factors; `float8_groups`: with one for 128 numbers of a row; `float8_experts`: all experts at once; `int4`: of
    4 bits with bfloat16."""

    float8: bool
    float8_groups: bool
    float8_experts: bool
    int4: bool

    @classmethod
    def of(cls, capability: tuple[int, int], cuda: str | None) -> Arithmetic:
        """By a GPU's compute capability, and the version of CUDA that torch is built with."""
        hopper = capability == (9, 0)
        new = cuda is not None and tuple(map(int, cuda.split(".")[:2])) >= _FLOAT8_GROUPS_SINCE
        return cls(capability >= (8, 9), hopper and new, hopper, capability >= (8, 0))


def arithmetic(device: torch.device) -> Arithmetic:
    """Of a GPU that is there."""
    return Arithmetic.of(torch.cuda.get_device_capability(device), torch.version.cuda)


def memory_bytes(device: torch.device) -> int:
    """All memory of a GPU that is there."""
    return torch.cuda.get_device_properties(device).total_memory


def problems() -> list[str]:
    """What of the GPU path cannot be used here, and why; empty when all of it can."""
    if (problem := cuda_problem()) is not None:
        return [problem]
    found = []
    if not arithmetic(torch.device("cuda")).float8:
        found.append("no products of 8-bit floats: they need compute capability 8.9")
    try:
        import_flashinfer()
    except ImportError as error:
        found.append(f"no fast attention and no CUDA graphs: {error}")
    return found


def import_flashinfer() -> ModuleType:
    """The package. Raises ImportError, saying why, where it does not load."""
    try:
        return importlib.import_module("flashinfer")
    except ImportError:
        raise
    except Exception as error:  # it looks for compilers and drivers as it loads
        raise ImportError(f"flashinfer does not load: {type(error).__name__}: {error}") from error
