"""Linear layers whose weights have 8 or 4 bits, by Baton's own kernel.

torch's kernels for such weights (baton.engine.cpu.linear) are made for up to four rows, and take up to three times as
long as oneDNN's bfloat16 for more; this one shares each spread-out panel of weights among all rows of a step, and keeps
up with that at any number of them. Weights alone are quantized: products are of bfloat16, sums in float32.
"""

from __future__ import annotations

import torch

from baton.engine.cpu import linear
from baton.engine.cpu.library import Kernels, QuantizedCall
from baton.engine.model.projection import MakeProjection, Projection

_GROUP = 16  # outputs side by side, GROUP of source/quantized.h
_STEP_GROUP = 32  # inputs that share a step in 4 bits
_DTYPES = (torch.float32, torch.bfloat16)


class QuantizedLinear:
    """`y = x W^T + b`: W[out, in] in 8 bits with a scale per output, or 4 with a step and lowest value per 32 inputs.

    x is [T, in], y a new [T, out] of the weight's dtype. A row's result does not depend on its companions.
    Use from one thread at a time; spreads its work over `torch.get_num_threads()` threads.
    """

    def __init__(self, kernels: Kernels, bits: int, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._kernels = kernels
        self._dtype = weight.dtype
        self._bias = None if bias is None else bias.float()
        outs, depth = weight.shape
        self._outs = outs
        empty = torch.empty(0)
        self._scales = self._steps = self._lowest = empty
        if bits == 8:
            self._scales, quantized = _to_int8(weight.float())
            self._weights = _in_pairs(quantized)
        else:
            self._steps, self._lowest, quantized = _to_int4(weight.float())
            pairs = _in_pairs(quantized)
            self._weights = pairs[..., 0] | pairs[..., 1] << 4
        self._call = QuantizedCall(
            weights=self._weights.data_ptr(), scales=self._scales.data_ptr(), steps=self._steps.data_ptr(),
            lowest=self._lowest.data_ptr(), bias=None if self._bias is None else self._bias.data_ptr(),
            weight_bits=bits, depth=depth, outs=outs, bits=weight.dtype.itemsize * 8,
        )  # fmt: skip

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, call = x.contiguous(), self._call
        y = x.new_empty((len(x), self._outs))
        call.x, call.out, call.rows, call.threads = x.data_ptr(), y.data_ptr(), len(x), torch.get_num_threads()
        self._kernels.multiply(call)
        return y


def maker(kernels: Kernels, bits: int) -> MakeProjection:
    """Makes layers of 8 or 4 bits: by the kernel, or by torch's for what the kernel does not know."""

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Projection:
        outs, depth = weight.shape
        if weight.dtype in _DTYPES and depth % _STEP_GROUP == 0 and outs % _GROUP == 0:
            return QuantizedLinear(kernels, bits, weight, bias)
        return linear.int8(weight, bias) if bits == 8 else linear.int4(weight, bias)

    return make


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales [outs], and int8 [outs, depth]: weight = scale * int8."""
    scales = weight.abs().amax(1).clamp_min(1e-12) / 127.0
    return scales, (weight / scales[:, None]).round_().to(torch.int8)


def _to_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Steps and lowest values, bfloat16 [depth / 32, outs], and uint8 [outs, depth] up to 15: lowest + step * uint8."""
    groups = weight.unflatten(1, (-1, _STEP_GROUP))
    # Rounded to what is kept before quantizing, so that the nearest step is found for that.
    lowest = groups.amin(2).bfloat16()
    steps = ((groups.amax(2) - lowest.float()) / 15.0).clamp_min(1e-8).bfloat16()
    quantized = ((groups - lowest.float()[:, :, None]) / steps.float()[:, :, None]).round_().clamp_(0, 15)
    return steps.T.contiguous(), lowest.T.contiguous(), quantized.flatten(1).to(torch.uint8)


def _in_pairs(quantized: torch.Tensor) -> torch.Tensor:
    """[outs, depth] as [outs / 16, depth / 2, 16, 2]: pairs of inputs of 16 outputs side by side."""
    return quantized.unflatten(0, (-1, _GROUP)).unflatten(2, (-1, 2)).transpose(1, 2).contiguous()
