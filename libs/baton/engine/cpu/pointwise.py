"""Norms, rotation and gating by Baton's own kernels: one pass over memory each, rounded where the torch reference
rounds. A `Pointwise` (baton.engine.model.pointwise) for float32 and bfloat16 on a CPU.
"""

from __future__ import annotations

import torch

from baton.engine.cpu.library import ALIGNMENT, GateCall, Kernels, NormCall, RotateCall, WeighCall
from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.model.pointwise import Heads, Norm, TorchPointwise, split_heads

DTYPES = (torch.float32, torch.bfloat16)
_GATES = {"silu": 0, "gelu_tanh": 1}  # Gate of source/elementwise.h


def supports(config: DecoderConfig, dtype: torch.dtype) -> bool:
    """Whether the kernels know tensors of these sizes."""
    sizes = (config.hidden_size, config.head_dim, *config.mlp_sizes)
    return dtype in DTYPES and all(size % ALIGNMENT == 0 for size in sizes)


def covers(config: DecoderConfig) -> bool:
    """Whether the kernels do everything that a model of this kind needs."""
    plain = not config.norm.centred and config.qk_norm in ("none", "head", "unit") and config.moe is None
    return plain and config.latent is None and _gates(config)


def _gates(config: DecoderConfig) -> bool:
    return config.activation in _GATES and config.gated and config.clamped_swiglu is None


class CpuPointwise:
    """Use from one thread at a time; spreads its work over `torch.get_num_threads()` threads. Takes contiguous
    matrices."""

    def __init__(self, kernels: Kernels, config: DecoderConfig, dtype: torch.dtype) -> None:
        if not supports(config, dtype):
            raise ValueError(f"{dtype} matrices of {config.hidden_size} columns need other operations")
        self._kernels = kernels
        self._config = config
        bits = dtype.itemsize * 8
        self._norm_call = NormCall(bits=bits, eps=config.norm_eps)
        self._rotate_call = RotateCall(
            bits=bits, heads=config.heads, kv_heads=config.kv_heads, dim=config.head_dim, eps=config.norm_eps
        )
        self._gate_call = GateCall(bits=bits, kind=_GATES.get(config.activation, 0))
        self._weigh_call = WeighCall(bits=bits)
        self._torch = TorchPointwise(config)  # for what some families do otherwise

    def norm(self, x_TE: torch.Tensor, norm: Norm) -> torch.Tensor:
        return self._torch.norm(x_TE, norm) if norm.centred else self._norm(x_TE, None, norm)

    def add_norm(self, x_TE: torch.Tensor, added_TE: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        if norm.centred:
            return self._torch.add_norm(x_TE, added_TE, norm)
        return x_TE, self._norm(x_TE, added_TE.contiguous(), norm)

    def rotate(
        self,
        qkv_TN: torch.Tensor,
        cos_T1D: torch.Tensor,
        sin_T1D: torch.Tensor,
        q_norm: Norm | None,
        k_norm: Norm | None,
    ) -> Heads:
        config = self._config
        if config.qk_norm == "all" or (q_norm is not None and q_norm.centred):
            return self._torch.rotate(qkv_TN, cos_T1D, sin_T1D, q_norm, k_norm)
        assert qkv_TN.stride(1) == 1
        call = self._rotate_call
        call.x, call.cosines, call.sines = qkv_TN.data_ptr(), cos_T1D.data_ptr(), sin_T1D.data_ptr()
        call.q_norm = None if q_norm is None else q_norm.weight.data_ptr()
        call.k_norm = None if k_norm is None else k_norm.weight.data_ptr()
        call.weight_bits = call.bits if q_norm is None else _bits(q_norm)
        call.tokens, call.stride, call.threads = len(qkv_TN), qkv_TN.stride(0), torch.get_num_threads()
        self._kernels.rotate(call)
        return split_heads(config, qkv_TN)

    def gate(self, gate_up_T2F: torch.Tensor) -> torch.Tensor:
        if not _gates(self._config):
            return self._torch.gate(gate_up_T2F)
        gate_up_T2F = gate_up_T2F.contiguous()
        tokens, size = len(gate_up_T2F), gate_up_T2F.shape[1] // 2
        out_TF = gate_up_T2F.new_empty((tokens, size))
        call = self._gate_call
        call.x, call.out, call.tokens, call.size = gate_up_T2F.data_ptr(), out_TF.data_ptr(), tokens, size
        call.threads = torch.get_num_threads()
        self._kernels.gate(call)
        return out_TF

    def weigh(self, x_TN: torch.Tensor, gate_TN: torch.Tensor) -> torch.Tensor:
        assert x_TN.is_contiguous() and gate_TN.is_contiguous()
        out_TN, call = torch.empty_like(x_TN), self._weigh_call
        call.x, call.gate, call.out = x_TN.data_ptr(), gate_TN.data_ptr(), out_TN.data_ptr()
        (call.tokens, call.size), call.threads = x_TN.shape, torch.get_num_threads()
        self._kernels.weigh(call)
        return out_TN

    def _norm(self, x_TE: torch.Tensor, added_TE: torch.Tensor | None, norm: Norm) -> torch.Tensor:
        assert x_TE.is_contiguous()
        out_TE = torch.empty_like(x_TE)
        call = self._norm_call
        call.x, call.added = x_TE.data_ptr(), None if added_TE is None else added_TE.data_ptr()
        call.weight, call.weight_bits, call.out = norm.weight.data_ptr(), _bits(norm), out_TE.data_ptr()
        (call.tokens, call.size), call.threads = x_TE.shape, torch.get_num_threads()
        self._kernels.norm(call)
        return out_TE


def _bits(norm: Norm) -> int:
    return norm.weight.dtype.itemsize * 8
