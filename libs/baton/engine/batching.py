"""From a plan to a batch: the rows' tokens, positions, slots and page tables as flat tensors.

What a row costs here depends on its new tokens only. Its page table is kept from step to step, and only what is new is
copied: there are two sets of tables, taken in turn, so that the next batch may be built while this one still runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from baton.engine.batch import StepBatch
from baton.engine.plan import PlannedRow
from baton.engine.request import RequestState
from baton.engine.transfer import to_device

_WIDTH_STEP = 64  # pages by which tables grow wider
_SLACK = 4  # tables that much wider than needed are made anew


class PageTables:
    """Page tables of one batch, [rows, width], kept for the next one that has the same requests in the same places."""

    def __init__(self) -> None:
        self._table = np.zeros((0, 0), dtype=np.int32)
        self._requests: list[RequestState | None] = []
        self._revisions: list[int] = []
        self._filled: list[int] = []

    def fill(self, rows: Sequence[PlannedRow], widths: Sequence[int]) -> npt.NDArray[np.int32]:
        """The table of `rows`, of which row i has `widths[i]` pages; padded with 0. Valid until the next `fill`."""
        self._make_room(len(rows), max(widths))
        table, requests, revisions, filled = self._table, self._requests, self._revisions, self._filled
        for i, row in enumerate(rows):
            request, width = row.request, widths[i]
            if requests[i] is not request or revisions[i] != request.table_revision:
                table[i, width : filled[i]] = 0
                requests[i], revisions[i], filled[i] = request, request.table_revision, 0
            if width > filled[i]:
                table[i, filled[i] : width] = request.pages.view[filled[i] : width]
                filled[i] = width
        return table[: len(rows)]

    def _make_room(self, rows: int, pages: int) -> None:
        height, width = self._table.shape
        if rows <= height and pages <= width <= _SLACK * (pages + _WIDTH_STEP):
            return
        height = max(height, rows)
        self._table = np.zeros((height, -(-pages // _WIDTH_STEP) * _WIDTH_STEP), dtype=np.int32)
        self._requests, self._revisions, self._filled = [None] * height, [0] * height, [0] * height


class BatchBuilder:
    """Builds batches for `device`, each of which is valid until the next but one is built."""

    def __init__(self, page_size: int, device: torch.device | str = "cpu") -> None:
        self._page_size = page_size
        self._device = torch.device(device)
        self._tables = (PageTables(), PageTables())
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
        table = self._tables[self._turn].fill(rows, [-(-end // page_size) for end in seq_lens])
        return StepBatch(
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
