"""Attention over the paged pool by Baton's own kernels: reads K and V straight from the pages, copying nothing.

An `AttentionBackend` (baton.engine.attention) for float32 and bfloat16 on a CPU, over heads or latents, with pages of
the same or of float8, which are read and written as they are: eight bits become floats in the registers. A row's result
does not depend on its companions, bit for bit, nor on the number of threads. Rows with one new token are computed
otherwise than longer ones, faster and with a little less rounding; `one_way` gives that up, so that a token's result
does not depend either on how its request was cut into steps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from baton.core.layout import ELEMENT_BYTES, FLOAT8, KvLayout
from baton.engine.attention import PLAIN, Chunks, Scoring, Window, check_pool
from baton.engine.batch import StepBatch
from baton.engine.clipping import CLIPPING
from baton.engine.cpu.library import ALIGNMENT, AttentionCall, Kernels, Tables, WriteCall

DTYPES = ("float32", "bfloat16")


def supports(layout: KvLayout, dtype: str, latent_dim: int | None = None) -> bool:
    """Whether the kernels know heads of this kind, or latents, in a model that computes in `dtype`."""
    fits = layout.head_dim % ALIGNMENT == 0 and (latent_dim or 0) % ALIGNMENT == 0
    return fits and dtype in DTYPES and layout.dtype in (dtype, FLOAT8)


class CpuAttention:
    """Use from one thread at a time; spreads its work over `torch.get_num_threads()` threads."""

    def __init__(
        self,
        kernels: Kernels,
        layout: KvLayout,
        windows: Sequence[Window],
        one_way: bool = False,
        scoring: Scoring = PLAIN,
        dtype: str | None = None,
    ) -> None:
        """`windows`: per layer, what a token attends to. `dtype`: of queries, K and V; None: the layout's."""
        dtype = dtype or layout.dtype
        if not supports(layout, dtype, scoring.latent_dim):
            raise ValueError(f"heads of {layout.head_dim} {dtype}, {layout.dtype} in pages, need another backend")
        self._kernels = kernels
        self._layout = layout
        # Per layer, latest positions and size of chunks, of which one is 0: not so.
        self._windows = [(0, window.size) if isinstance(window, Chunks) else (window or 0, 0) for window in windows]
        types = {
            "bits": 32 if dtype == "float32" else 16,
            "stored_bits": 8 * ELEMENT_BYTES[layout.dtype],
            "element": layout.scale,
        }
        self._layers: list[int] = []
        self._pool: torch.Tensor | None = None
        self._batch: StepBatch | None = None
        self._tables = Tables()
        tables = ctypes.addressof(self._tables)
        self._write = WriteCall(
            tables=tables,
            clipped=CLIPPING.address,
            page_size=layout.page_size,
            size=layout.kv_heads * layout.head_dim,
            **types,
        )
        self._call = AttentionCall(
            tables=tables, page_size=layout.page_size, kv_heads=layout.kv_heads, head_dim=layout.head_dim,
            one_way=one_way, latent=scoring.latent_dim or 0, scale=scoring.scale_of(layout.head_dim),
            soft_cap=scoring.soft_cap or 0.0, **types,
        )  # fmt: skip
        self._latent_dim = scoring.latent_dim
        self._sinks = scoring.sinks  # keeps alive what the addresses point to

    def bind_pool(self, pool: torch.Tensor) -> None:
        check_pool(self._layout, pool)
        self._pool = pool
        self._layers = [layer.data_ptr() for layer in pool]

    def plan(self, batch: StepBatch) -> None:
        tables, rows = self._tables, len(batch.q_lens_host)
        indices = (batch.page_table, batch.q_starts, batch.seq_lens)
        assert all(index.dtype == torch.int32 and index.is_contiguous() for index in indices)
        assert batch.slots.dtype == torch.int64 and batch.slots.is_contiguous()
        assert len(batch.page_table) >= rows and len(batch.q_starts) > rows
        self._batch = batch  # keeps alive what the addresses below point to
        tables.page_table, tables.q_starts, tables.seq_lens = (index.data_ptr() for index in indices)
        tables.slots, tables.table_width, tables.rows = batch.slots.data_ptr(), batch.page_table.shape[1], rows
        self._call.threads = torch.get_num_threads()

    def write(self, layer: int, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> None:
        k_TKD, v_TKD, call = _by_token(k_TKD), _by_token(v_TKD), self._write
        call.pool, call.k, call.v, call.tokens = self._layers[layer], k_TKD.data_ptr(), v_TKD.data_ptr(), len(k_TKD)
        call.k_stride, call.v_stride = k_TKD.stride(0), v_TKD.stride(0)
        self._kernels.write(call)

    def run(self, layer: int, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> torch.Tensor:
        q_THD, call = _by_token(q_THD), self._call
        out_THD = torch.empty((*q_THD.shape[:2], self._latent_dim or q_THD.shape[2]), dtype=q_THD.dtype)
        call.pool, call.q, call.out = self._layers[layer], q_THD.data_ptr(), out_THD.data_ptr()
        call.q_stride, call.heads, (call.window, call.chunk) = q_THD.stride(0), q_THD.shape[1], self._windows[layer]
        if self._sinks is not None:
            call.sinks = self._sinks[layer].data_ptr()
        self._kernels.attend(call)
        return out_THD


def _by_token(x_TND: torch.Tensor) -> torch.Tensor:
    """`x` itself when each token's heads lie side by side, else a copy in which they do."""
    if x_TND.stride(2) == 1 and x_TND.stride(1) == x_TND.shape[2]:
        return x_TND
    return x_TND.contiguous()
