"""Linear layers in bfloat16 by Baton's own kernel, for processors that multiply pairs of bfloat16.

A weight is packed once in the order in which a product reads it. benchmarks/engine/kernels.py finds that faster than
oneDNN for the rows of a decode step, a tenth to a third, and as fast for a prompt's; processors with matrix units (AMX)
are left to oneDNN, which uses them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from baton.engine.cpu.build import processor_flags
from baton.engine.cpu.library import ALIGNMENT, Kernels, PanelsCall
from baton.engine.model.projection import MakeProjection, Projection

_PANEL_OUTS = 64  # outputs side by side, PANEL_OUTS of source/panels.h


class PanelLinear:
    """`y = x W^T + b`: x is bfloat16 [T, in], y a new [T, out]. A row's result does not depend on its companions.

    Use from one thread at a time; spreads its work over `torch.get_num_threads()` threads.
    """

    def __init__(self, kernels: Kernels, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Takes weights that `fits`."""
        self._kernels = kernels
        self._outs, depth = weight.shape
        self._panels = _in_panels(weight)
        self._bias = None if bias is None else F.pad(bias.float(), (0, -self._outs % ALIGNMENT))
        self._call = PanelsCall(
            weights=self._panels.data_ptr(), bias=None if self._bias is None else self._bias.data_ptr(), depth=depth,
            outs=self._outs,
        )  # fmt: skip

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, call = x.contiguous(), self._call
        y = x.new_empty((len(x), self._outs))
        call.x, call.out, call.rows, call.threads = x.data_ptr(), y.data_ptr(), len(x), torch.get_num_threads()
        self._kernels.multiply_panels(call)
        return y


def maker(kernels: Kernels, other: MakeProjection) -> MakeProjection:
    """Makes layers by the kernel, and by `other` what it does not know or is not the fastest for."""
    if not kernels.multiplies_pairs or "amx_bf16" in processor_flags():
        return other

    def make(weight: torch.Tensor, bias: torch.Tensor | None) -> Projection:
        return PanelLinear(kernels, weight, bias) if fits(weight) else other(weight, bias)

    return make


def fits(weight: torch.Tensor) -> bool:
    """Whether the kernel knows weights of this shape and type."""
    return weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0


def _in_panels(weight: torch.Tensor) -> torch.Tensor:
    """[outs, depth] as [panels, depth / 2, PANEL_OUTS, 2]; outputs that the last panel lacks are 0."""
    outs, depth = weight.shape
    weight = weight.contiguous()
    panels = weight.new_empty((-(-outs // _PANEL_OUTS), depth // 2, _PANEL_OUTS, 2))
    if outs % _PANEL_OUTS:
        panels[-1].zero_()
    # Pairs as one number each: so they are turned as a plain matrix, which torch does several times faster.
    for panel, rows in zip(panels.view(torch.int32)[..., 0], weight.view(torch.int32).split(_PANEL_OUTS), strict=True):
        panel[:, : len(rows)].copy_(rows.t())
    return panels
