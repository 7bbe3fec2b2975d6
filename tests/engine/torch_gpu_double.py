"""Stand-ins for torch's products of few bits that only GPUs have, on a CPU.

They check what the real ones check, by torch's own checks of shapes and strides where it has them (its meta kernels),
and compute in float32 what those compute. Products of 8-bit floats with a step per row, and of whole numbers of 8 bits,
torch has on a CPU, too: these are the real ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import ScalingType

BF16, FLOAT8 = torch.bfloat16, torch.float8_e4m3fn
_BLOCKS = int(ScalingType.BlockWise1x128.value)


@contextmanager
def gpu_products() -> Iterator[None]:
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_convert_weight_to_int4pack", _convert_weight_to_int4pack, "CPU")
        library.impl("_weight_int4pack_mm", _weight_int4pack_mm, "CPU")
        library.impl("_scaled_grouped_mm", _scaled_grouped_mm, "CPU")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one already
            library.impl("_scaled_mm_v2", _scaled_mm_v2, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


def _meta(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in tensors]


def _convert_weight_to_int4pack(pairs: torch.Tensor, inner_k_tiles: int) -> torch.Tensor:
    """The first of a pair is in a byte's high half."""
    outs, octets = pairs.shape
    assert pairs.dtype == torch.uint8 and pairs.is_contiguous() and inner_k_tiles in (2, 4, 8)
    assert outs % 8 == 0 and octets * 2 % (inner_k_tiles * 16) == 0
    return pairs.clone().view(torch.int32).view(outs // 8, octets * 2 // (inner_k_tiles * 16), 32, inner_k_tiles // 2)


def _weight_int4pack_mm(x: torch.Tensor, packed: torch.Tensor, group: int, scales_zeros: torch.Tensor) -> torch.Tensor:
    outs, depth = packed.shape[0] * 8, x.shape[1]
    assert x.dtype == BF16 and x.is_contiguous() and packed.is_contiguous() and packed.shape[2] == 32
    assert packed.shape[1] == depth // (packed.shape[3] * 2 * 16)
    assert group in (32, 64, 128, 256) and depth % group == 0
    assert scales_zeros.dtype == BF16 and scales_zeros.shape == (depth // group, outs, 2)
    pairs = packed.reshape(-1).view(torch.uint8).view(outs, -1)
    values = torch.stack((pairs >> 4, pairs & 15), 2).view(outs, depth)
    scales, zeros = scales_zeros.float().transpose(0, 1).repeat_interleave(group, 1).unbind(2)
    return (x.float() @ ((values.float() - 8) * scales + zeros).t()).bfloat16()


def _scaled_mm_v2(
    x, weight, scale_a, recipe_a, swizzle_a, scale_b, recipe_b, swizzle_b, bias, out_dtype, contraction_dim=(),
    use_fast_accum=False,
):  # fmt: skip
    assert list(recipe_a) == list(recipe_b) == [_BLOCKS] and not swizzle_a and not swizzle_b and bias is None
    (steps_a,), (steps_b,) = scale_a, scale_b
    torch._scaled_mm_v2(
        *_meta(x, weight), _meta(steps_a), recipe_a, [], _meta(steps_b), recipe_b, [], None, out_dtype, (), False
    )
    assert len(x) % 4 == 0  # 16 bytes of steps
    wide_a, wide_b = (
        each.float() * steps.repeat_interleave(128, 1) for each, steps in ((x, steps_a), (weight.t(), steps_b))
    )
    return (wide_a @ wide_b.t()).to(out_dtype)


def _scaled_grouped_mm(
    x, weight, scale_a, scale_b, offs=None, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False
):
    torch._scaled_grouped_mm(*_meta(x, weight, scale_a, scale_b, offs), out_dtype=out_dtype)
    assert x.shape[1] % 16 == 0 and weight.shape[2] % 16 == 0 and bias is None
    y, start = torch.empty(len(x), weight.shape[2]), 0
    for expert, end in enumerate(offs.tolist()):
        rows = x[start:end].float() * scale_a[start:end, None]
        y[start:end] = rows @ (weight[expert].float() * scale_b[expert])
        start = end
    return y.to(out_dtype)
