"""Elements of a KV pool as torch tensors: their types, and how numbers become elements of fewer bits, and back.

Between attention backends of torch operations and the pool. What the CPU kernels do by themselves (source/simd.h) and
agents between pools of different layouts (baton.kv.reshard.convert) is the same, bit for bit.
"""

from __future__ import annotations

import torch

from baton.core.layout import FLOAT8, RAW, KvLayout
from baton.engine.clipping import CLIPPED_FROM, CLIPPING

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    FLOAT8: torch.float8_e4m3fn,
    RAW: torch.uint8,
}
_MOST = torch.finfo(torch.float8_e4m3fn).max


class Elements:
    """Numbers of `dtype` (None: the layout's) kept in a pool of `layout`.

    Elements of 8 bits travel as uint8, with which torch's indexing works on every device.
    """

    def __init__(self, layout: KvLayout, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or TORCH_DTYPES[layout.dtype]
        self.narrow = layout.dtype == FLOAT8
        self._scale = layout.scale

    def of(self, pool: torch.Tensor) -> torch.Tensor:
        """The pool's memory as this class speaks of it."""
        return pool.view(torch.uint8) if self.narrow else pool

    def stored(self, numbers: torch.Tensor) -> torch.Tensor:
        """Elements: the nearest ones, ties to even; the largest for what is larger; NaN stays NaN."""
        if not self.narrow:
            return numbers
        scaled = numbers.float() / self._scale if self._scale != 1.0 else numbers
        if scaled.device.type == "cpu":
            CLIPPING.add(int((scaled.abs() > CLIPPED_FROM).sum()))
        return scaled.clamp(-_MOST, _MOST).to(torch.float8_e4m3fn).view(torch.uint8)

    def numbers(self, elements: torch.Tensor) -> torch.Tensor:
        """Of `dtype`. Exact, if the scale is a power of two."""
        if not self.narrow:
            return elements
        numbers = elements.view(torch.float8_e4m3fn).to(self.dtype)
        return numbers * self._scale if self._scale != 1.0 else numbers
