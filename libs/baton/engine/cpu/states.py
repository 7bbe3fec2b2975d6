"""Layers that keep a state, on a CPU: those whose mixers Baton's kernels know by these, the others by torch operations.

A `States` (baton.engine.state_store), with the one of torch operations for the others. The kernels find the step's
pages in tables that stay where they are, so that calls of them can be recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import torch

from baton.engine.batch import StepBatch
from baton.engine.cpu.library import Kernels
from baton.engine.cpu.mixers import Mixed, Place, by_kernels, knows
from baton.engine.cpu.state_calls import StateTables
from baton.engine.state_store import Mixer, StateStore


class CpuStates:
    """Use from one thread at a time; spreads its work over `torch.get_num_threads()` threads."""

    def __init__(self, kernels: Kernels, store: StateStore, mixers: Mapping[int, Mixer], dtype: torch.dtype) -> None:
        """`mixers`: of the layers that keep a state, of a model that computes in `dtype`."""
        self.row_bytes = store.row_bytes
        self._kernels = kernels
        self._store = store
        self._dtype = dtype
        self._known = {layer: mixer for layer, mixer in mixers.items() if knows(mixer, dtype)}
        self._mixed: dict[int, Mixed] = {}
        self._tables = {group: StateTables() for group in store.groups}
        self._batch: StepBatch | None = None
        self.covers = len(self._known) == len(mixers)  # whether the kernels do everything

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._store.bind_pool(pool)
        self._mixed = {
            layer: by_kernels(self._kernels, mixer, self._place(layer, pool), self._dtype)
            for layer, mixer in (self._known if pool.shape[1] else {}).items()
        }

    def plan(self, batch: StepBatch) -> None:
        pages = self._store.find_pages(batch)
        if not self.covers:
            self._store.plan(batch)
        self._batch = batch  # keeps alive what the addresses below point to
        for group, tables in self._tables.items():
            sources, targets = pages[group]
            assert sources.is_contiguous() and targets.is_contiguous()
            tables.sources, tables.targets, tables.pages = sources.data_ptr(), targets.data_ptr(), sources.shape[1]
            tables.q_starts, tables.seq_lens = batch.q_starts.data_ptr(), batch.seq_lens.data_ptr()
            tables.rows = len(batch.q_lens_host)

    def mixed(self, layer: int, mixer: Mixer, x_TE: torch.Tensor) -> torch.Tensor:
        mixed = self._mixed.get(layer)
        return self._store.mixed(layer, mixer, x_TE) if mixed is None else mixed(x_TE)

    def saved(self) -> Callable[[], None]:
        return self._store.saved()

    def _place(self, layer: int, pool: torch.Tensor) -> Place:
        group, at = self._store.place(layer)
        tables = ctypes.addressof(self._tables[group])
        return Place.of(pool[at].data_ptr(), tables, self._store.page_bytes, self._store.parts[layer])
