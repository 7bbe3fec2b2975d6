"""What multiplies by a model's matrices, by device and settings; chosen once, before weights are read."""

from __future__ import annotations

import torch

from baton.core.errors import ConfigError
from baton.engine.cpu import attention as cpu_attention
from baton.engine.cpu import panels, quantized
from baton.engine.cpu.library import Kernels
from baton.engine.cpu.linear import QUANTIZATIONS, packed, steady
from baton.engine.cuda import quantized as cuda_quantized
from baton.engine.cuda.support import Arithmetic
from baton.engine.model.projection import ExpertProducts, Linear, Products


def plain(quantization: str) -> Products:
    """By torch's own operations."""
    return Products(Linear if quantization == "none" else QUANTIZATIONS[quantization])


def on_cpu(kernels: Kernels | None, quantization: str, dtype: str, deterministic: bool) -> Products:
    """The fastest on a CPU, of a model of `dtype`; without `kernels`, those that torch brings. With a `quantization`
    all matrices get that one, however they are stored."""
    if kernels is None:
        return Products(QUANTIZATIONS[quantization])
    if quantization != "none":
        return Products(quantized.maker(kernels, quantization))
    other = steady if deterministic and dtype in cpu_attention.DTYPES else packed
    return Products(panels.maker(kernels, other), quantized.keeper(kernels, getattr(torch, dtype), deterministic))


def on_gpu(can: Arithmetic, quantization: str, device: torch.device, spread_experts: bool = True) -> Products:
    """By what torch brings for a GPU; `quantization` as above, but matrices stay whole whose shape no kernel takes.
    `spread_experts`: of a mixture that a checkpoint stores in few bits, all experts fit into its memory spread out.

    Raises ConfigError for a quantization that the GPU lacks.
    """
    lacking = {"fp8": (not can.float8, "8.9 (Ada, Hopper)"), "int4": (not can.int4, "8.0 (Ampere)")}
    lacks, least = lacking.get(quantization, (False, ""))
    if lacks:
        raise ConfigError(f"quantization = {quantization} needs a GPU of compute capability {least} at least")
    return Products(
        Linear,
        cuda_quantized.keeper(can, device),
        ExpertProducts(
            cuda_quantized.experts_keeper(can, device),
            cuda_quantized.expert_keeper(can, device),
            spread_experts and quantization == "none",
        ),
        None if quantization == "none" else cuda_quantized.QUANTIZE[quantization],
    )
