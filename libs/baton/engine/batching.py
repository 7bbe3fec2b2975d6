"""From a plan to a batch: the rows' tokens, positions, slots and page tables as flat tensors.

What a row costs here depends on its new tokens only. Its page table is kept from step to step, and only what is new is
copied: there are two sets of tables, taken in turn, so that the next batch may be built while this one still runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from baton.core.layout import CANARY_PAGE, STATE, KvLayout
from baton.engine.bands import bands_of
from baton.engine.batch import StepBatch
from baton.engine.plan import PlannedRow
from baton.engine.request import RequestState
from baton.engine.transfer import to_device

_WIDTH_STEP = 64  # pages by which tables grow wider
_SLACK = 4  # tables that much wider than needed are made anew


class _View(Protocol):
    @property
    def view(self) -> npt.NDArray[Any]: ...


class Holder(Protocol):
    """Who has pages: ids of its blocks along the last axis of `pages.view`. `table_revision` changes when any of them
    does, or goes."""

    @property
    def pages(self) -> _View: ...

    @property
    def table_revision(self) -> int: ...


class PageTables:
    """Page tables of one batch, [rows, width], kept for the next one that has the same holders in the same places.

    With `groups` there are as many for each row: [groups, rows, width].
    """

    def __init__(self, *groups: int) -> None:
        self._table = np.zeros((*groups, 0, 0), dtype=np.int32)
        self._holders: list[Holder | None] = []
        self._revisions: list[int] = []
        self._filled: list[int] = []

    def fill(self, rows: Sequence[Holder], widths: Sequence[int]) -> npt.NDArray[np.int32]:
        """The table of `rows`, of which row i has `widths[i]` pages; padded with 0. Valid until the next `fill`."""
        self._make_room(len(rows), max(widths))
        table, holders, revisions, filled = self._table, self._holders, self._revisions, self._filled
        for i, holder in enumerate(rows):
            width = widths[i]
            if holders[i] is not holder or revisions[i] != holder.table_revision:
                table[..., i, width : filled[i]] = 0
                holders[i], revisions[i], filled[i] = holder, holder.table_revision, 0
            if width > filled[i]:
                table[..., i, filled[i] : width] = holder.pages.view[..., filled[i] : width]
                filled[i] = width
        return table[..., : len(rows), :]

    def _make_room(self, rows: int, pages: int) -> None:
        *groups, height, width = self._table.shape
        if rows <= height and pages <= width <= _SLACK * (pages + _WIDTH_STEP):
            return
        height = max(height, rows)
        self._table = np.zeros((*groups, height, -(-pages // _WIDTH_STEP) * _WIDTH_STEP), dtype=np.int32)
        self._holders, self._revisions, self._filled = [None] * height, [0] * height, [0] * height


class BatchBuilder:
    """Builds batches for `device`, each of which is valid until the next but one is built."""

    def __init__(self, page_size: int, device: torch.device | str = "cpu", layout: KvLayout | None = None) -> None:
        """`layout`: of models with groups of layers, whose batches have views."""
        self._page_size = page_size
        self._device = torch.device(device)
        self._tables = (PageTables(), PageTables())
        groups = layout.groups if layout is not None else ()
        self._has_views = bool(groups)
        self._has_full = layout is None or layout.has_full
        widths = [band.width for band in bands_of(layout)] if layout is not None else []
        self._band_tables = tuple([PageTables(width) for width in widths] for _ in range(2))
        self._state_sizes = [group.size for group in groups if group.kind == STATE]
        self._turn = 0

    def build(self, rows: Sequence[PlannedRow]) -> StepBatch:
        """The batch of `rows`, in their order; see StepBatch for shapes. Late tokens are 0: see `late_tokens`."""
        page_size = self._page_size
        q_lens = [row.end - row.start for row in rows]
        seq_lens = [row.end for row in rows]
        q_starts = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(q_lens, out=q_starts[1:])
        token_ids: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        logit_rows: list[int] = []
        for row in rows:
            tokens, table, start, end = row.request.tokens.view, row.request.pages.view, row.start, row.end
            if end - start == 1:
                token_ids.append(0 if row.late else tokens[start])
                positions.append(start)
                pages.append(table[start // page_size])
            else:
                token_ids += tokens[start:end].tolist()
                positions += range(start, end)
                pages += table[np.arange(start, end) // page_size].tolist()
            if row.logits_start < end:
                until = len(token_ids)
                logit_rows += range(until - (end - row.logits_start), until)
        at = np.array(positions, dtype=np.int64)
        slots = np.array(pages, dtype=np.int64) * page_size + at % page_size
        self._turn ^= 1
        requests = [row.request for row in rows]
        table = self._tables[self._turn].fill(requests, [-(-end // page_size) for end in seq_lens])
        batch = StepBatch(
            token_ids=self._on_device(np.array(token_ids, dtype=np.int64)),
            positions=self._on_device(at),
            slots=self._on_device(slots),
            q_starts=self._on_device(q_starts),
            seq_lens=self._on_device(np.array(seq_lens, dtype=np.int32)),
            page_table=self._on_device(table),
            logit_rows=self._on_device(np.array(logit_rows, dtype=np.int64)),
            q_lens_host=q_lens,
            seq_lens_host=seq_lens,
        )
        if self._has_views:
            batch.views = (*self._views(batch, requests, at), *self._state_views(batch, requests))
        return batch

    def _views(self, batch: StepBatch, requests: Sequence[RequestState], at: npt.NDArray[Any]) -> tuple[StepBatch, ...]:
        """The batch as groups of layers see it, the full one first. `at`: positions of its tokens."""
        page_size, found = self._page_size, [batch] if self._has_full else []
        row_of = np.repeat(np.arange(len(requests)), batch.q_lens_host)
        ends = np.array(batch.seq_lens_host, dtype=np.int32)
        for band, tables in enumerate(self._band_tables[self._turn]):
            holders = [request.bands[band] for request in requests]
            firsts = np.array([holder.first for holder in holders], dtype=np.int32)
            seq_lens = ends - firsts * page_size
            pages = tables.fill(holders, (-(-seq_lens // page_size)).tolist())
            new_pages = np.ascontiguousarray(pages[:, row_of, at // page_size - firsts[row_of]], dtype=np.int64)
            slots = new_pages * page_size + at % page_size
            shared = {"seq_lens": self._on_device(seq_lens), "seq_lens_host": seq_lens.tolist()}
            for group_slots, table in zip(self._on_device(slots), self._on_device(pages), strict=True):
                found.append(replace(batch, slots=group_slots, page_table=table, **shared))
        return tuple(found)

    def _state_views(self, batch: StepBatch, requests: Sequence[RequestState]) -> Iterator[StepBatch]:
        """The batch as groups of layers see it that keep states."""
        if not self._state_sizes:
            return
        tables = [request.state for request in requests if request.state is not None]
        none = (CANARY_PAGE,) * sum(self._state_sizes)
        sources = np.array([table.source or none for table in tables], dtype=np.int64)
        targets = np.array([table.target for table in tables], dtype=np.int64)
        start = 0
        for size in self._state_sizes:
            own = slice(start, start := start + size)
            yield replace(
                batch,
                state_sources=self._on_device(np.ascontiguousarray(sources[:, own])),
                state_targets=self._on_device(np.ascontiguousarray(targets[:, own])),
            )

    def late_tokens(self, rows: Sequence[PlannedRow]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where in the batch tokens of the step before belong, and where that step has put them; each int64 [N]."""
        late = [index for index, row in enumerate(rows) if row.late]
        if not late:
            return None
        # A late row has one token, and so have all rows before it: decodes come first.
        places = [rows[index].request.token_place for index in late]
        return self._on_device(np.array(late, dtype=np.int64)), self._on_device(np.array(places, dtype=np.int64))

    def _on_device(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return to_device(torch.from_numpy(values), self._device)
