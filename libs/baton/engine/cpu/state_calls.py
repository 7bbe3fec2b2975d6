"""Arguments of the kernels of layers that keep a state, as baton.engine.cpu.library has those of the others."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64, c_void_p


class StateTables(ctypes.Structure):
    """What differs from step to step: `StateTables` of source/states.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("sources", "targets", "q_starts", "seq_lens")),
        *((name, c_int64) for name in ("pages", "rows")),
    ]


class PartCall(ctypes.Structure):
    """What calls begin with that read and write a part of states: `StatePart` of source/states.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("pool", "tables")),
        *((name, c_int64) for name in ("page_bytes", "offset")),
    ]


class ConvolveCall(PartCall):
    """Arguments of `convolve`: `Convolution` of source/convolution.h, then what `Convolve` adds."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "factor", "gate", "weight", "bias", "out")),
        *((name, c_int64) for name in ("stride", "channels", "width", "silu", "threads", "bits")),
    ]


class ScanCall(PartCall):
    """Arguments of `scan`: `Mamba2` of source/recurrences.h, then what `Scan` adds."""

    _fields_ = [
        *((name, c_void_p) for name in ("xbc", "dt", "a", "skip", "dt_bias", "out")),
        *(
            (name, c_int64)
            for name in ("stride", "dt_stride", "heads", "head_dim", "groups", "size", "threads", "bits")
        ),
    ]


class SelectCall(PartCall):
    """Arguments of `select`: `Mamba1` of source/mamba1.h, then what `Select` adds."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "gate", "dt", "b", "c", "a", "skip", "dt_bias", "out")),
        *((name, c_int64) for name in ("gate_stride", "b_stride", "c_stride", "channels", "size", "threads", "bits")),
    ]


class DeltaCall(PartCall):
    """Arguments of `delta`: `Delta` of source/recurrences.h, then what `Correct` adds."""

    _fields_ = [
        *((name, c_void_p) for name in ("qkv", "rates", "a", "bias", "out")),
        ("most", c_double),
        *(
            (name, c_int64)
            for name in (
                "stride", "rates_stride", "heads", "key_heads", "key_dim", "value_dim", "threads", "bits",
            )
        ),
    ]  # fmt: skip


class GatedNormCall(ctypes.Structure):
    """Arguments of `gated_norm`: `GatedNorm` of source/recurrences.h, then what `NormGated` adds."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "gate", "weight", "out")),
        ("eps", c_double),
        *(
            (name, c_int64)
            for name in (
                "gate_stride", "tokens", "groups", "size", "shared", "gate_first", "threads", "bits", "weight_bits",
            )
        ),
    ]  # fmt: skip
