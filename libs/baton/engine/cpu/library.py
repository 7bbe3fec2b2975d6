"""The compiled kernels as typed functions: the one place that knows their C interface.

Functions take a structure that holds addresses of contiguous (or strided, where they say so) memory, and release the
interpreter's lock while they run. Calls can be recorded, and made again all together. Callers own all memory, and
answer for shapes: nothing is checked on the other side.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_double, c_int64, c_void_p
from pathlib import Path

import structlog
import torch

from baton.engine.cpu.build import BuildError, best_variant, build
from baton.engine.cpu.tape import PackedCall, Tape
from baton.runtime import environ

log = structlog.get_logger(__name__)

# Sizes of heads and rows are multiples of this: the most lanes that a vector has.
ALIGNMENT = 16

Kernel = Callable[[ctypes.Structure], None]


class Tables(ctypes.Structure):
    """What differs from step to step: `Tables` of source/kernels.cpp, field by field, as all of the following."""

    _fields_ = [
        *((name, c_void_p) for name in ("page_table", "q_starts", "seq_lens", "slots")),
        *((name, c_int64) for name in ("table_width", "rows")),
    ]


class AttentionCall(ctypes.Structure):
    """Arguments of `attend`: `Attention` of source/attention.h, then what `Attend` adds."""

    _fields_ = [
        *((name, c_void_p) for name in ("pool", "q", "out", "page_table", "q_starts", "seq_lens", "sinks")),
        *((name, c_double) for name in ("scale", "soft_cap", "element")),
        *(
            (name, c_int64)
            for name in (
                "q_stride", "table_width", "rows", "page_size", "heads", "kv_heads", "head_dim", "window", "chunk",
                "one_way", "latent", "threads",
            )
        ),
        ("tables", c_void_p),
        *((name, c_int64) for name in ("bits", "stored_bits")),
    ]  # fmt: skip


class WriteCall(ctypes.Structure):
    """Arguments of `write`: `Write`."""

    _fields_ = [
        *((name, c_void_p) for name in ("pool", "k", "v", "tables", "clipped")),
        ("element", c_double),
        *((name, c_int64) for name in ("bits", "stored_bits", "tokens", "k_stride", "v_stride", "page_size", "size")),
    ]


class NormCall(ctypes.Structure):
    """Arguments of `norm`: `Norm`."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "added", "weight", "out")),
        ("eps", c_double),
        *((name, c_int64) for name in ("bits", "weight_bits", "tokens", "size", "threads")),
    ]


class RotateCall(ctypes.Structure):
    """Arguments of `rotate`: `Rotate`."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "cosines", "sines", "q_norm", "k_norm")),
        ("eps", c_double),
        *(
            (name, c_int64)
            for name in ("bits", "weight_bits", "tokens", "stride", "heads", "kv_heads", "dim", "threads")
        ),
    ]


class GateCall(ctypes.Structure):
    """Arguments of `gate`: `Gated`."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "out")),
        *((name, c_int64) for name in ("bits", "kind", "tokens", "size", "threads")),
    ]


class WeighCall(ctypes.Structure):
    """Arguments of `weigh`: `Weighed`."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "gate", "out")),
        *((name, c_int64) for name in ("bits", "tokens", "size", "threads")),
    ]


class QuantizedCall(ctypes.Structure):
    """Arguments of `multiply`: `Quantized` of source/quantized.h, then what `Multiply` adds."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weights", "table", "scales", "bias", "out")),
        ("zero", c_double),
        *((name, c_int64) for name in ("kind", "steps", "counted", "has_lowest", "group", "one_way")),
        *((name, c_int64) for name in ("rows", "depth", "outs", "stride", "threads", "bits")),
    ]


class PanelsCall(ctypes.Structure):
    """Arguments of `multiply_panels`: `Panels` of source/panels.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weights", "bias", "out")),
        *((name, c_int64) for name in ("rows", "depth", "outs", "threads")),
    ]


class Kernels:
    """The functions of one compiled library, each of which takes the structure with its arguments. Any thread may call
    any of them; while calls are being recorded, one thread only."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when `path` is no library that this machine can load."""
        self.path = path
        self._library = library = ctypes.CDLL(str(path))
        self.attend = self._kernel("attend")
        self.write = self._kernel("write")
        self.norm = self._kernel("norm")
        self.rotate = self._kernel("rotate")
        self.gate = self._kernel("gate")
        self.weigh = self._kernel("weigh")
        self.multiply = self._kernel("multiply")
        self.multiply_panels = self._kernel("multiply_panels")
        self.convolve = self._kernel("convolve")
        self.scan = self._kernel("scan")
        self.select = self._kernel("select")
        self.delta = self._kernel("delta")
        self.gated_norm = self._kernel("gated_norm")
        library.baton_multiplies_pairs.restype = c_int64
        self.multiplies_pairs = bool(library.baton_multiplies_pairs())
        library.baton_use_team.argtypes, library.baton_use_team.restype = [c_void_p], None
        self.use_team = library.baton_use_team
        library.baton_run.argtypes, library.baton_run.restype = [c_void_p, c_int64], None

        self._tape: Tape | None = None

    def separate(self) -> Kernels:
        """The same functions, whose recording is another's."""
        return Kernels(self.path)

    @contextmanager
    def recording(self) -> Iterator[Tape]:
        """A tape of all calls that are made through this object meanwhile."""
        self._tape = Tape()
        try:
            yield self._tape
        finally:
            self._tape = None

    def run(self, calls: ctypes.Array[PackedCall]) -> None:
        """Make all calls of a tape."""
        self._library.baton_run(calls, len(calls))

    def _kernel(self, name: str) -> Kernel:
        function = getattr(self._library, f"baton_{name}")
        function.argtypes, function.restype = [c_void_p], None
        address = ctypes.cast(function, c_void_p).value
        assert address is not None

        def call(arguments: ctypes.Structure) -> None:
            function(ctypes.addressof(arguments))
            if self._tape is not None:
                self._tape.add(address, arguments)

        return call


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
