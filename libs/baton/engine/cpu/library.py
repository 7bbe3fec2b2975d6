"""The compiled kernels as typed functions: the one place that knows their C interface.

Functions take addresses of contiguous (or strided, where they say so) memory and release the interpreter's lock while
they run. Callers own all memory, and answer for shapes: nothing is checked on the other side.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int64, c_void_p
from pathlib import Path

import structlog
import torch

from baton.engine.cpu.build import BuildError, best_variant, build
from baton.runtime import environ

log = structlog.get_logger(__name__)

# Sizes of heads and rows are multiples of this: the most lanes that a vector has.
ALIGNMENT = 16


class AttentionCall(ctypes.Structure):
    """Arguments of `attend`: `Attention` of source/attention.h, field by field."""

    _fields_ = [
        *((name, c_void_p) for name in ("pool", "q", "out", "page_table", "q_starts", "seq_lens", "sinks")),
        *((name, c_double) for name in ("scale", "soft_cap")),
        *(
            (name, c_int64)
            for name in (
                "q_stride", "table_width", "rows", "page_size", "heads", "kv_heads", "head_dim", "window", "chunk",
                "one_way", "threads",
            )
        ),
    ]  # fmt: skip


class QuantizedCall(ctypes.Structure):
    """Arguments of `multiply`: `Quantized` of source/quantized.h, field by field."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weights", "scales", "steps", "lowest", "bias", "out")),
        *((name, c_int64) for name in ("weight_bits", "rows", "depth", "outs", "threads")),
    ]


class PanelsCall(ctypes.Structure):
    """Arguments of `multiply_panels`: `Panels` of source/panels.h, field by field."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weights", "bias", "out")),
        *((name, c_int64) for name in ("rows", "depth", "outs", "threads")),
    ]


class Kernels:
    """The functions of one compiled library. Stateless: any thread may call any of them."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when `path` is no library that this machine can load."""
        library = ctypes.CDLL(str(path))
        self.path = path
        self.attend = library.baton_attend
        self.write = library.baton_write
        self.norm = library.baton_norm
        self.rotate = library.baton_rotate
        self.gate = library.baton_gate
        self.multiply = library.baton_multiply
        self.multiply_panels = library.baton_multiply_panels
        self.attend.argtypes = [c_int64, ctypes.POINTER(AttentionCall)]
        self.write.argtypes = [c_int64, *[c_void_p] * 4, *[c_int64] * 5]
        self.norm.argtypes = [c_int64, c_int64, *[c_void_p] * 4, c_int64, c_int64, c_double, c_int64]
        self.rotate.argtypes = [c_int64, c_int64, *[c_void_p] * 5, *[c_int64] * 5, c_double, c_int64]
        self.multiply.argtypes = [c_int64, ctypes.POINTER(QuantizedCall)]
        self.multiply_panels.argtypes = [ctypes.POINTER(PanelsCall)]
        self.gate.argtypes = [c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int64]
        for function in (
            self.attend, self.write, self.norm, self.rotate, self.gate, self.multiply, self.multiply_panels,
        ):  # fmt: skip
            function.restype = None
        library.baton_multiplies_pairs.restype = c_int64
        self.multiplies_pairs = bool(library.baton_multiplies_pairs())
        library.baton_use_team.argtypes, library.baton_use_team.restype = [c_void_p], None
        self.use_team = library.baton_use_team


def torch_team() -> int | None:
    """Address of what runs a function on torch's own threads (`Team` of source/threads.h), or None where torch's OpenMP
    runtime does not offer it. Kernels on threads of their own would compete with torch's for the same cores."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, c_void_p).value  # of torch, or of what it is linked with
    except (OSError, AttributeError):
        return None


def open_kernels(cache: Path, variant: str) -> Kernels:
    """Compile, if need be, and load. Raises BuildError saying why that is not possible."""
    for attempt in range(2):
        path = build(cache, variant)
        try:
            kernels = Kernels(path)
            kernels.use_team(torch_team())
            return kernels
        except (OSError, AttributeError) as error:
            if attempt:
                raise BuildError(f"{path} cannot be loaded: {error}") from None
            path.unlink(missing_ok=True)  # damaged in the cache: compile it again
    raise AssertionError("unreachable")


@functools.cache
def kernels() -> Kernels | None:
    """The kernels for this machine, or None, after one warning that says why, where they cannot be had."""
    try:
        return open_kernels(environ.cache_dir() / "kernels", best_variant())
    except BuildError as error:
        log.warning("no CPU kernels: the model runs on plain torch operations, several times slower", reason=str(error))
        return None
