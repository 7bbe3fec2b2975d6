"""Where layers that keep a state read it before a step, and write it after: the pool's pages as rows of tensors.

To a layer a state is a few tensors per row; in the pool they stand one after the other, as bytes, in the pages of the
layer's place in its group (baton.core.layout). Layers may keep different ones. Every row's state is read whole and
written whole, and the pages written may be others than those read (baton.engine.states). A row that begins with its
request has a state of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from baton.core.errors import InternalError
from baton.core.layout import STATE, KvLayout
from baton.engine.batch import StepBatch
from baton.engine.transfer import indices


@dataclass(frozen=True, slots=True)
class StatePart:
    """One tensor of a layer's state of one row."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def state_bytes(parts: Sequence[StatePart]) -> int:
    """Bytes of a state of one layer and row."""
    return sum(part.nbytes for part in parts)


@dataclass(frozen=True, slots=True)
class StepRows:
    """A step's rows as layers with a state need them: `row_of_T` [T], `q_lens` on the host."""

    row_of_T: torch.Tensor
    q_lens: list[int]


class Mixer(Protocol):
    """What a layer computes that keeps a state."""

    def mixed(self, layer: int, x_TE: torch.Tensor, states: StateStore) -> torch.Tensor:
        """What goes into the layer's output matrix, [T, N]. The states are read, and written."""


class States(Protocol):
    """The layers of a model that keep a state, over a bound pool. One step at a time: plan, then mix layer by layer.

    `row_bytes`: of the pages with the states of one row."""

    row_bytes: int

    def bind_pool(self, pool: torch.Tensor) -> None:
        """Use `pool`, of the layout; it stays the caller's."""

    def plan(self, batch: StepBatch) -> None:
        """Prepare for the layers of one step. Raises InternalError where the batch has no pages for states."""

    def mixed(self, layer: int, mixer: Mixer, x_TE: torch.Tensor) -> torch.Tensor:
        """What `mixer.mixed` returns; states are in the pool then, or in stream order on a GPU."""

    def saved(self) -> Callable[[], None]:
        """What brings the states that the planned step reads back to what they are now."""


class StateStore:
    """States of the layers of `layout` that keep one, for mixers of torch operations. One step at a time: plan, then
    per layer read and write."""

    def __init__(self, layout: KvLayout, parts: Mapping[int, Sequence[StatePart]]) -> None:
        """`parts`: what the state of each such layer is made of."""
        self.parts = parts
        self.page_bytes = layout.page_bytes
        sizes = [group.size for group in layout.groups if group.kind == STATE]
        self.row_bytes = sum(sizes) * layout.layers * layout.page_bytes
        self.groups = [index for index, group in enumerate(layout.groups) if group.kind == STATE]
        self._places = {
            layer: (index, at) for index in self.groups for at, layer in enumerate(layout.groups[index].layers)
        }
        self._pool = torch.empty(0, dtype=torch.uint8)
        self._pages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._fresh: torch.Tensor | None = None
        self.rows = StepRows(torch.empty(0, dtype=torch.int64), [])

    def place(self, layer: int) -> tuple[int, int]:
        """Its group, and its place in the group's pages."""
        return self._places[layer]

    def bind_pool(self, pool: torch.Tensor) -> None:
        """Use `pool`, of the layout; it stays the caller's."""
        self._pool = pool.view(torch.uint8).view(pool.shape[0], pool.shape[1], self.page_bytes)

    def plan(self, batch: StepBatch) -> None:
        """Prepare for the layers of one step. Raises InternalError where the batch has no pages for states."""
        device = batch.token_ids.device
        self.find_pages(batch)
        lens = list(zip(batch.seq_lens_host, batch.q_lens_host, strict=True))
        fresh = [row for row, (seq_len, q_len) in enumerate(lens) if seq_len == q_len]
        self._fresh = indices(fresh, device) if fresh else None
        rows = torch.arange(len(lens), device=device)
        row_of_T = torch.repeat_interleave(rows, indices(batch.q_lens_host, device), output_size=len(batch.token_ids))
        self.rows = StepRows(row_of_T, batch.q_lens_host)

    def find_pages(self, batch: StepBatch) -> Mapping[int, tuple[torch.Tensor, torch.Tensor]]:
        """By group, the pages that a step reads and those that it writes, int64 [R, k]: what `plan` does first."""
        for index in self.groups:
            view = batch.views[index]
            if view.state_sources is None or view.state_targets is None:
                raise InternalError("a batch has no pages for the states of its rows")
            self._pages[index] = view.state_sources, view.state_targets
        return self._pages

    def mixed(self, layer: int, mixer: Mixer, x_TE: torch.Tensor) -> torch.Tensor:
        """What `mixer` makes of the states here."""
        return mixer.mixed(layer, x_TE, self)

    def saved(self) -> Callable[[], None]:
        """What brings the states that the planned step reads back to what they are now."""
        kept = [(sources, self._pool[:, sources]) for sources, _ in self._pages.values()]

        def restore() -> None:
            for sources, states in kept:
                self._pool[:, sources] = states

        return restore

    def read(self, layer: int) -> tuple[torch.Tensor, ...]:
        """The states of the step's rows before it, [R, *shape] of each part: new tensors."""
        group, at = self._places[layer]
        held = self._pool[at, self._pages[group][0]].flatten(1)
        if self._fresh is not None:
            held[self._fresh] = 0
        found, start = [], 0
        for part in self.parts[layer]:
            own = held[:, start : start + part.nbytes].contiguous()
            found.append(own.view(part.dtype).view(-1, *part.shape))
            start += part.nbytes
        return tuple(found)

    def write(self, layer: int, states: Sequence[torch.Tensor]) -> None:
        """The states of the step's rows after it; final on return, or in stream order on a GPU."""
        group, at = self._places[layer]
        targets = self._pages[group][1]
        parts = zip(self.parts[layer], states, strict=True)
        held = [state.to(part.dtype).contiguous().flatten(1).view(torch.uint8) for part, state in parts]
        room = targets.shape[1] * self.page_bytes - state_bytes(self.parts[layer])
        held.append(held[0].new_zeros((len(targets), room)))
        self._pool[at, targets] = torch.cat(held, dim=1).view(len(targets), -1, self.page_bytes)
