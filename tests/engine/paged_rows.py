"""Hand-made steps for tests of the model: rows in a pool whose pages are shuffled and were left dirty."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from baton.core.layout import RESERVED_PAGES, STATE, KvLayout
from baton.engine.batch import StepBatch
from baton.engine.elements import TORCH_DTYPES


def make_batch(rows: Sequence[tuple[Sequence[int], int, Sequence[int]]], page_size: int, all_logits: bool) -> StepBatch:
    """A step of rows (new token ids, cached_len, page ids); logits of all new tokens, or of each row's last."""
    token_ids, positions, slots, starts, logit_rows = [], [], [], [0], []
    for new, cached, pages in rows:
        where = range(cached, cached + len(new))
        token_ids += new
        positions += where
        slots += [pages[p // page_size] * page_size + p % page_size for p in where]
        logit_rows += range(starts[-1] if all_logits else starts[-1] + len(new) - 1, starts[-1] + len(new))
        starts.append(starts[-1] + len(new))
    width = max(len(pages) for _, _, pages in rows)
    seq_lens = [cached + len(new) for new, cached, _ in rows]
    return StepBatch(
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        q_starts=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        page_table=torch.tensor([[*pages, *[0] * (width - len(pages))] for _, _, pages in rows], dtype=torch.int32),
        logit_rows=torch.tensor(logit_rows),
        q_lens_host=[len(new) for new, _, _ in rows],
        seq_lens_host=seq_lens,
    )


@dataclass
class Row:
    tokens: list[int]
    cached: int = 0
    pages: list[int] = field(default_factory=list)


def with_views(
    batch: StepBatch, layout: KvLayout, pages: int, sources: Sequence[list[int]] = (), targets: Sequence[list[int]] = ()
) -> StepBatch:
    """The batch for a pool in which page p of group g is page p + g * `pages`; nothing is out of a window.

    `sources` and `targets`: of each row, the pages of the state that it reads and writes, if there is one."""
    views = [
        replace(
            batch,
            slots=batch.slots + g * pages * layout.page_size,
            page_table=batch.page_table + g * pages,
            state_sources=torch.tensor(sources) + g * pages,
            state_targets=torch.tensor(targets) + g * pages,
        )
        for g in range(len(layout.groups))
    ]
    return replace(batch, views=tuple(views))


class PagedModel:
    """A runner over its own pool, whose every byte was NaN before: reading a slot nobody wrote shows at once."""

    def __init__(self, runner, pages: int = 400, seed: int = 0, in_place: bool = False) -> None:
        """`in_place`: states are written where they were read; else each into pages of its own."""
        layout: KvLayout = runner.layout
        self._pages = pages
        self._in_place = in_place
        shape = (
            layout.layers,
            pages * max(1, len(layout.groups)),
            2,
            layout.page_size,
            layout.kv_heads,
            layout.head_dim,
        )
        dtype = TORCH_DTYPES[layout.dtype]
        self.pool = torch.full(shape, float("nan") if dtype.is_floating_point else 255, dtype=dtype)
        runner.bind_pool(self.pool)
        self.runner = runner
        self._state_pages = next((group.size for group in layout.groups if group.kind == STATE), 0)
        self._states: dict[tuple[int, ...], list[int]] = {}  # pages of the state after these tokens
        self._free = random.Random(seed).sample(range(RESERVED_PAGES, pages), pages - RESERVED_PAGES)
        self._free_states = list(self._free)  # in groups of their own

    def step(
        self,
        work: Sequence[tuple[Row, int]],
        all_logits: bool = False,
        on_layer: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Run the next `n` tokens of each row in one step; logits [L, V]."""
        batch_rows, sources, targets = [], [], []
        for row, n in work:
            while len(row.pages) * self.runner.layout.page_size < row.cached + n:
                row.pages.append(self._free.pop())
            batch_rows.append((row.tokens[row.cached : row.cached + n], row.cached, row.pages))
            assert len(batch_rows[-1][0]) == n
            source = self._states.get(tuple(row.tokens[: row.cached]))
            sources.append(source or [0] * self._state_pages)
            written_over = source if self._in_place else None
            targets.append(written_over or [self._free_states.pop() for _ in range(self._state_pages)])
            self._states[tuple(row.tokens[: row.cached + n])] = targets[-1]
        batch = make_batch(batch_rows, self.runner.layout.page_size, all_logits)
        logits = self.runner.forward(with_views(batch, self.runner.layout, self._pages, sources, targets), on_layer)
        for row, n in work:
            row.cached += n
        return logits

    def greedy(self, row: Row, count: int) -> list[int]:
        """Extend the row and append `count` greedy tokens, one step each."""
        start = len(row.tokens)
        while len(row.tokens) < start + count:
            logits = self.step([(row, len(row.tokens) - row.cached)])
            row.tokens.append(int(logits[-1].argmax()))
        return row.tokens[start:]
