"""Norms, rotation and gating by Baton's own kernels: one pass over memory each, rounded where the torch reference
rounds. A `Pointwise` (baton.engine.model.pointwise) for float32 and bfloat16 on a CPU.
"""

from __future__ import annotations

import torch

from baton.engine.cpu.library import ALIGNMENT, Kernels
from baton.engine.model.config import DecoderConfig
from baton.engine.model.pointwise import Heads, split_heads

DTYPES = (torch.float32, torch.bfloat16)


def supports(config: DecoderConfig, dtype: torch.dtype) -> bool:
    """Whether the kernels know tensors of these sizes."""
    sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
    return dtype in DTYPES and all(size % ALIGNMENT == 0 for size in sizes)


class CpuPointwise:
    """Stateless; spreads its work over `torch.get_num_threads()` threads. Takes contiguous matrices."""

    def __init__(self, kernels: Kernels, config: DecoderConfig, dtype: torch.dtype) -> None:
        if not supports(config, dtype):
            raise ValueError(f"{dtype} matrices of {config.hidden_size} columns need other operations")
        self._kernels = kernels
        self._config = config
        self._bits = dtype.itemsize * 8

    def norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        return self._norm(x_TE, None, weight_E)

    def add_norm(
        self, x_TE: torch.Tensor, added_TE: torch.Tensor, weight_E: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return x_TE, self._norm(x_TE, added_TE.contiguous(), weight_E)

    def rotate(
        self,
        qkv_TN: torch.Tensor,
        cos_T1D: torch.Tensor,
        sin_T1D: torch.Tensor,
        q_norm_D: torch.Tensor | None,
        k_norm_D: torch.Tensor | None,
    ) -> Heads:
        config = self._config
        assert qkv_TN.stride(1) == 1
        self._kernels.rotate(
            self._bits, qkv_TN.data_ptr(), cos_T1D.data_ptr(), sin_T1D.data_ptr(),
            None if q_norm_D is None else q_norm_D.data_ptr(), None if k_norm_D is None else k_norm_D.data_ptr(),
            len(qkv_TN), qkv_TN.stride(0), config.heads, config.kv_heads, config.head_dim, config.norm_eps,
            torch.get_num_threads(),
        )  # fmt: skip
        return split_heads(config, qkv_TN)

    def gate(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        gate_up_T2F = gate_up_T2F.contiguous()
        tokens, size = len(gate_up_T2F), gate_up_T2F.shape[1] // 2
        out_TF = gate_up_T2F.new_empty((tokens, size))
        threads = torch.get_num_threads()
        self._kernels.gate(self._bits, gate_up_T2F.data_ptr(), out_TF.data_ptr(), tokens, size, threads)
        return out_TF

    def _norm(self, x_TE: torch.Tensor, added_TE: torch.Tensor | None, weight_E: torch.Tensor) -> torch.Tensor:
        assert x_TE.is_contiguous()
        out_TE = torch.empty_like(x_TE)
        added = None if added_TE is None else added_TE.data_ptr()
        self._kernels.norm(
            self._bits, x_TE.data_ptr(), added, weight_E.data_ptr(), out_TE.data_ptr(), *x_TE.shape,
            self._config.norm_eps, torch.get_num_threads(),
        )  # fmt: skip
        return out_TE
