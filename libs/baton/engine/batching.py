"""From a plan to a batch: the rows' tokens, positions, slots and page tables as flat tensors.

What a row costs here depends on its new tokens only, but for its page table, which is copied as one run of memory.
Tensors are fresh in every step, so the next batch may be built while this one still runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from baton.engine.batch import StepBatch
from baton.engine.plan import PlannedRow


def build_batch(rows: Sequence[PlannedRow], page_size: int) -> StepBatch:
    """The batch of `rows`, in their order; see StepBatch for shapes. Its tensors are on the host."""
    q_lens = [row.end - row.start for row in rows]
    seq_lens = [row.end for row in rows]
    widths = [-(-end // page_size) for end in seq_lens]
    q_starts = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(q_lens, out=q_starts[1:])
    token_ids = np.empty(q_starts[-1], dtype=np.int64)
    positions = np.empty(q_starts[-1], dtype=np.int64)
    slots = np.empty(q_starts[-1], dtype=np.int64)
    page_table = np.zeros((len(rows), max(widths)), dtype=np.int32)
    logit_rows: list[int] = []
    at = 0
    for index, row in enumerate(rows):
        pages = row.request.pages.view
        page_table[index, : widths[index]] = pages[: widths[index]]
        until = at + q_lens[index]
        token_ids[at:until] = row.request.tokens.view[row.start : row.end]
        if q_lens[index] == 1:
            positions[at] = row.start
            slots[at] = int(pages[row.start // page_size]) * page_size + row.start % page_size
        else:
            span = np.arange(row.start, row.end)
            positions[at:until] = span
            slots[at:until] = pages[span // page_size].astype(np.int64) * page_size + span % page_size
        logit_rows.extend(range(until - (row.end - row.logits_start), until))
        at = until
    return StepBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        q_starts=torch.from_numpy(q_starts),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        page_table=torch.from_numpy(page_table),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64),
        q_lens_host=q_lens,
        seq_lens_host=seq_lens,
    )
