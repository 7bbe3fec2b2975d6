"""Mixers of layers that keep a state by Baton's own kernels: what baton.engine.model's do with torch operations.

Each is made once for a layer, from the mixer that has its weights, and called for every step. States are read and
written where they lie, in the pool's pages. A token's result does not depend, bit for bit, on its companions, nor on
the number of threads, nor on how its row was cut into steps: the recurrences go token by token.

    T  tokens of all rows    E  hidden size    C  channels of a convolution    I  what comes out of a mixer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from baton.engine.cpu.library import ALIGNMENT, Kernels
from baton.engine.cpu.panels import PanelLinear, fits
from baton.engine.cpu.state_calls import ConvolveCall, DeltaCall, GatedNormCall, ScanCall, SelectCall
from baton.engine.model.gated_delta import GatedDelta
from baton.engine.model.mamba1 import Mamba1
from baton.engine.model.mamba2 import Mamba2
from baton.engine.model.mamba_config import NORM_FIRST
from baton.engine.model.pointwise import Norm
from baton.engine.model.projection import Linear
from baton.engine.model.short_conv import ShortConv
from baton.engine.state_store import Mixer, StatePart

DTYPES = (torch.float32, torch.bfloat16)
_WIDTHS = (2, 3, 4)  # of convolutions
Mixed = Callable[[torch.Tensor], torch.Tensor]  # x [T, E] -> a new [T, I]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the states of a layer are: addresses of its pages and of the step's `StateTables`. `offsets`: of the parts
    of a state, in bytes."""

    pool: int
    tables: int
    page_bytes: int
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, pool: int, tables: int, page_bytes: int, parts: Sequence[StatePart]) -> Place:
        offsets, end = [], 0
        for part in parts:
            offsets.append(end)
            end += part.nbytes
        return cls(pool, tables, page_bytes, tuple(offsets))

    def part(self, index: int) -> dict[str, int]:
        """Fields that calls begin with."""
        return {
            "pool": self.pool, "tables": self.tables, "page_bytes": self.page_bytes, "offset": self.offsets[index]
        }  # fmt: skip


def knows(mixer: Mixer, dtype: torch.dtype) -> bool:
    """Whether there are kernels for a mixer of this kind and these sizes, on x of `dtype`."""
    if dtype not in DTYPES:
        return False
    if isinstance(mixer, ShortConv):
        return _convolves(mixer.weight_WE)
    if isinstance(mixer, Mamba1):
        return _convolves(mixer.conv_WI) and _aligned(mixer.config.state)
    if isinstance(mixer, Mamba2):
        mamba2 = mixer.config
        return _convolves(mixer.conv_WC) and _aligned(mamba2.head_dim, mamba2.state, mamba2.inner // mamba2.groups)
    if isinstance(mixer, GatedDelta):
        return _convolves(mixer.conv_WC) and _aligned(mixer.config.key_dim, mixer.config.value_dim)
    return False


def by_kernels(kernels: Kernels, mixer: Mixer, place: Place, dtype: torch.dtype) -> Mixed:
    """What computes a mixer that the kernels know."""
    if isinstance(mixer, ShortConv):
        return CpuShortConv(kernels, mixer, place, dtype)
    if isinstance(mixer, Mamba1):
        return CpuMamba1(kernels, mixer, place, dtype)
    if isinstance(mixer, Mamba2):
        return CpuMamba2(kernels, mixer, place, dtype)
    assert isinstance(mixer, GatedDelta)
    return CpuGatedDelta(kernels, mixer, place, dtype)


def _convolves(weight_WC: torch.Tensor) -> bool:
    return len(weight_WC) in _WIDTHS and _aligned(weight_WC.shape[1])


def _aligned(*sizes: int) -> bool:
    return all(size % ALIGNMENT == 0 for size in sizes)


class _Convolution:
    """A causal convolution whose state is part 0. Threads are those of torch, here and below."""

    def __init__(
        self,
        kernels: Kernels,
        place: Place,
        weight_WC: torch.Tensor,
        bias_C: torch.Tensor | None,
        dtype: torch.dtype,
        silu: bool,
    ) -> None:
        self._kernels = kernels
        self._weight = weight_WC.to(dtype).contiguous()
        self._bias = None if bias_C is None else bias_C.to(dtype).contiguous()
        width, channels = weight_WC.shape
        self._call = ConvolveCall(
            **place.part(0), weight=self._weight.data_ptr(), bias=None if self._bias is None else self._bias.data_ptr(),
            channels=channels, width=width, silu=silu, bits=8 * dtype.itemsize,
        )  # fmt: skip

    def __call__(
        self, x_TC: torch.Tensor, factor_TC: torch.Tensor | None = None, gate_TC: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Of x, times `factor`; then times `gate`. All are columns of one matrix."""
        call, out_TC = self._call, x_TC.new_empty((len(x_TC), self._weight.shape[1]))
        call.x, call.stride, call.out, call.threads = _address(x_TC), x_TC.stride(0), out_TC.data_ptr(), _threads()
        call.factor = None if factor_TC is None else _address(factor_TC)
        call.gate = None if gate_TC is None else _address(gate_TC)
        self._kernels.convolve(call)
        return out_TC


class _GatedNorm:
    """`groups` groups of elements of each token normed, if there is a norm, times the silu of a gate. `gate_first`:
    what is normed is the product with it."""

    def __init__(
        self,
        kernels: Kernels,
        norm: Norm | None,
        groups: int,
        size: int,
        eps: float,
        dtype: torch.dtype,
        gate_first: bool,
    ) -> None:
        self._kernels = kernels
        self._call = GatedNormCall(
            eps=eps, groups=groups, size=size, gate_first=gate_first, bits=8 * dtype.itemsize,
            weight_bits=8 * dtype.itemsize,
        )  # fmt: skip
        if norm is not None:
            self._weight = weight = norm.weight.contiguous()
            self._call.weight, self._call.weight_bits = weight.data_ptr(), 8 * weight.dtype.itemsize
            self._call.shared = len(weight) == size

    def __call__(self, x_TI: torch.Tensor, gate_TI: torch.Tensor) -> torch.Tensor:
        call, out_TI = self._call, torch.empty_like(x_TI)
        call.x, call.out, call.tokens, call.threads = x_TI.data_ptr(), out_TI.data_ptr(), len(x_TI), _threads()
        call.gate, call.gate_stride = _address(gate_TI), gate_TI.stride(0)
        self._kernels.gated_norm(call)
        return out_TI


class CpuShortConv:
    """`ShortConv`."""

    def __init__(self, kernels: Kernels, mixer: ShortConv, place: Place, dtype: torch.dtype) -> None:
        self._input = mixer.input
        self._convolve = _Convolution(kernels, place, mixer.weight_WE, mixer.bias_E, dtype, silu=False)

    def __call__(self, x_TE: torch.Tensor) -> torch.Tensor:
        b_TE, c_TE, inner_TE = self._input(x_TE).chunk(3, dim=-1)
        return self._convolve(inner_TE, b_TE, c_TE)


class CpuMamba1:
    """`Mamba1`."""

    def __init__(self, kernels: Kernels, mixer: Mamba1, place: Place, dtype: torch.dtype) -> None:
        self._kernels = kernels
        self._mixer = mixer
        self._convolve = _Convolution(kernels, place, mixer.conv_WI, mixer.conv_bias_I, dtype, silu=True)
        self._rates = mixer.a_IN.contiguous()
        self._call = SelectCall(
            **place.part(1), a=self._rates.data_ptr(), skip=mixer.d_I.data_ptr(), dt_bias=mixer.step_bias_I.data_ptr(),
            channels=mixer.config.inner, size=mixer.config.state, bits=8 * dtype.itemsize,
        )  # fmt: skip

    def __call__(self, x_TE: torch.Tensor) -> torch.Tensor:
        mixer, call = self._mixer, self._call
        x_TI, gate_TI = mixer.input(x_TE).chunk(2, dim=-1)
        x_TI = self._convolve(x_TI)
        rate_TX, b_TN, c_TN = mixer.select(x_TI)
        dt_TI = mixer.step(rate_TX)
        out_TI = torch.empty_like(x_TI)
        call.x, call.dt, call.out = x_TI.data_ptr(), dt_TI.data_ptr(), out_TI.data_ptr()
        call.gate, call.gate_stride = _address(gate_TI), gate_TI.stride(0)
        call.b, call.b_stride, call.c, call.c_stride = _address(b_TN), b_TN.stride(0), _address(c_TN), c_TN.stride(0)
        call.threads = _threads()
        self._kernels.select(call)
        return out_TI


class CpuMamba2:
    """`Mamba2`."""

    def __init__(self, kernels: Kernels, mixer: Mamba2, place: Place, dtype: torch.dtype) -> None:
        config = mixer.config
        self._kernels = kernels
        self._mixer = mixer
        self._convolve = _Convolution(kernels, place, mixer.conv_WC, mixer.conv_bias_C, dtype, silu=True)
        self._call = ScanCall(
            **place.part(1), a=mixer.a_H.data_ptr(), skip=mixer.d_H.data_ptr(), dt_bias=mixer.dt_bias_H.data_ptr(),
            heads=config.heads, head_dim=config.head_dim, groups=config.groups, size=config.state,
            bits=8 * dtype.itemsize,
        )  # fmt: skip
        size = config.inner // config.groups
        gate_first = config.gating != NORM_FIRST
        self._norm = _GatedNorm(kernels, mixer.norm, config.groups, size, mixer.eps, dtype, gate_first)

    def __call__(self, x_TE: torch.Tensor) -> torch.Tensor:
        config, call = self._mixer.config, self._call
        made_TX = self._mixer.input(x_TE)
        gate_TI, xbc_TC, dt_TH = made_TX.split((config.inner, config.channels, config.heads), dim=-1)
        xbc_TC = self._convolve(xbc_TC)
        y_TI = xbc_TC.new_empty((len(x_TE), config.inner))
        call.xbc, call.stride, call.dt, call.dt_stride = (
            _address(xbc_TC),
            xbc_TC.stride(0),
            _address(dt_TH),
            dt_TH.stride(0),
        )
        call.out, call.threads = y_TI.data_ptr(), _threads()
        self._kernels.scan(call)
        return self._norm(y_TI, gate_TI)


class CpuGatedDelta:
    """`GatedDelta`."""

    def __init__(self, kernels: Kernels, mixer: GatedDelta, place: Place, dtype: torch.dtype) -> None:
        config = mixer.config
        self._kernels = kernels
        self._mixer = mixer
        self._rates = mixer.rates
        if isinstance(self._rates, Linear) and self._rates.bias is None and kernels.multiplies_pairs:
            weight = self._rates.weight
            self._rates = PanelLinear(kernels, weight, None) if fits(weight) else self._rates
        self._convolve = _Convolution(kernels, place, mixer.conv_WC, None, dtype, silu=True)
        self._call = DeltaCall(
            **place.part(1), a=mixer.a_H.data_ptr(), bias=mixer.bias_H.data_ptr(), most=2.0 if config.doubled else 1.0,
            heads=config.value_heads, key_heads=config.key_heads, key_dim=config.key_dim, value_dim=config.value_dim,
            bits=8 * dtype.itemsize,
        )  # fmt: skip
        self._norm = _GatedNorm(
            kernels, mixer.norm, config.value_heads, config.value_dim, config.eps, dtype, gate_first=False
        )

    def __call__(self, x_TE: torch.Tensor) -> torch.Tensor:
        config, call = self._mixer.config, self._call
        qkv_TC, gate_TI = self._mixer.input(x_TE).split((config.channels, config.values), dim=-1)
        rates_TX = self._rates(x_TE)
        qkv_TC = self._convolve(qkv_TC)
        y_TI = qkv_TC.new_empty((len(x_TE), config.values))
        call.qkv, call.stride, call.rates, call.rates_stride = (
            _address(qkv_TC), qkv_TC.stride(0), _address(rates_TX), rates_TX.stride(0),
        )  # fmt: skip
        call.out, call.threads = y_TI.data_ptr(), _threads()
        self._kernels.delta(call)
        return self._norm(y_TI, gate_TI)


def _address(x_TN: torch.Tensor) -> int:
    """Of a matrix whose rows may stand apart."""
    assert x_TN.stride(1) == 1
    return x_TN.data_ptr()


def _threads() -> int:
    return torch.get_num_threads()
