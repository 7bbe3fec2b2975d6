"""Whether a model computes the same on pages as by itself: asked of every model that runs through `transformers`.

Two made-up rows are run in pieces, side by side, and their logits held against those of the model's own attention,
each row whole and alone. What does not go through the attention function shows here: biases by distance, states and
convolutions over tokens, masks and positions that the model makes of a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

import torch

from baton.core.errors import CheckpointError
from baton.core.layout import RESERVED_PAGES, STATE, CacheGroup, KvLayout
from baton.engine.batch import StepBatch

# Lengths of the two rows, and how much of each is run in each step.
LENGTHS = (38, 27)
_STEPS = ((21, 9), (1, 1), (1, 1), (15, 16))
_WHOLE_AND_ALONE, _IN_PIECES = ((LENGTHS[0], 0),), ((21, 0), (1, 0), (1, 0), (15, 0))

# Errors are means over the vocabulary, in standard deviations of the logits. In float32 the worst token counts. In half
# precision rounding moves single tokens, those most that a router sends elsewhere: of each step the typical one counts.
_EXACT, _ROUNDED = 1e-3, 0.15


class Forward(Protocol):
    def __call__(self, batch: StepBatch, on_layer: Callable[[int], None] | None, /) -> torch.Tensor:
        """Logits [L, V]."""


@dataclass
class _Row:
    """A text: which of all it is, its blocks among those of all, and how much of it is done."""

    number: int
    tokens: list[int]
    blocks: range
    done: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Expected:
    """The made-up rows, and the model's own logits of each, [T, V]."""

    rows: list[list[int]]
    logits: list[torch.Tensor]

    @classmethod
    def of(cls, own: Callable[[list[int]], torch.Tensor], vocab_size: int, context_tokens: int) -> Expected:
        """`own(tokens)` are the model's own logits of a text, which may have up to `context_tokens`."""
        rows = made_up_texts(vocab_size, context_tokens)
        return cls(rows, [own(tokens) for tokens in rows])


def made_up_texts(vocab_size: int, context_tokens: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = [min(length, context_tokens) for length in LENGTHS]
    return [torch.randint(vocab_size, (length,), generator=draw).tolist() for length in lengths]


def check_self(forward: Forward, expected: Expected, layout: KvLayout, device: torch.device, exact: bool) -> None:
    """Raises CheckpointError, with what goes wrong, unless `forward` on `pages_needed` pages gives what is expected.
    `exact`: the model computes in float32."""

    def agrees(steps: Sequence[Sequence[int]]) -> bool:
        got = run_in_steps(forward, expected.rows, steps, layout, device)
        errors = [_errors(ours, theirs) for ours, theirs in zip(got, expected.logits, strict=True)]
        return all(_small(part, exact) for part in (errors if exact else _by_step(errors, steps)))

    if agrees(_STEPS):
        return
    if not agrees(_WHOLE_AND_ALONE):
        raise CheckpointError("it does not compute the same with Baton's attention as with its own")
    if not agrees(_IN_PIECES):
        raise CheckpointError("a token hangs on those before it by more than their keys and values")
    raise CheckpointError("a token hangs on what else is in its batch")


def alike(ours_nV: torch.Tensor, theirs_nV: torch.Tensor, exact: bool) -> bool:
    """Whether logits are the same but for rounding."""
    return _small(_errors(ours_nV, theirs_nV), exact)


def pages_needed(layout: KvLayout, lengths: Sequence[int] = LENGTHS) -> int:
    """Pages of a pool that rows of those lengths are run on, from the first on."""
    return _pages_before(layout, len(layout.groups) or 1, lengths)


def _pages_before(layout: KvLayout, group: int, lengths: Sequence[int]) -> int:
    """Pages of a pool that are reserved, or of groups before that one. None is ever given back."""
    blocks = sum(map(layout.blocks_for, lengths))
    states = [each.size * len(lengths) for each in layout.groups[:group] if each.kind == STATE]
    return RESERVED_PAGES + (group - len(states)) * blocks + sum(states)


def run_in_steps(
    forward: Forward, rows: Sequence[list[int]], steps: Sequence[Sequence[int]], layout: KvLayout, device: torch.device
) -> list[torch.Tensor]:
    """Logits of the rows' tokens: in each step the next so many of each row, as far as it has them."""
    texts = [len(tokens) for tokens in rows]
    ends = list(accumulate(map(layout.blocks_for, texts), initial=0))
    running = [_Row(at, tokens, range(*ends[at : at + 2])) for at, tokens in enumerate(rows)]
    for lengths in steps:
        due = zip(running, lengths, strict=False)
        parts = [(row, n) for row, length in due if (n := min(length, len(row.tokens) - row.done))]
        batch = _batch(parts, layout.page_size, device)
        numbers = [row.number for row, _ in parts]
        batch.views = tuple(
            _view(batch, group, _pages_before(layout, at, texts), layout.page_size, numbers)
            for at, group in enumerate(layout.groups)
        )
        logits = forward(batch, None).float()
        for (row, length), mine in zip(parts, logits.split([length for _, length in parts]), strict=True):
            row.logits.append(mine)
            row.done += length
    return [torch.cat(row.logits) if row.logits else torch.empty(0) for row in running]


def _view(batch: StepBatch, group: CacheGroup, first: int, page_size: int, rows: Sequence[int]) -> StepBatch:
    """The batch as a group sees it, whose pages begin with `first`. `rows`: numbers of those in the batch."""
    if group.kind == STATE:
        states = torch.tensor([[first + row * group.size + at for at in range(group.size)] for row in rows])
        states = states.to(batch.token_ids.device)
        return replace(batch, state_sources=states, state_targets=states)
    more = first - RESERVED_PAGES
    return replace(batch, slots=batch.slots + more * page_size, page_table=batch.page_table + more)


def _batch(parts: Sequence[tuple[_Row, int]], page_size: int, device: torch.device) -> StepBatch:
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for row, length in parts:
        where = range(row.done, row.done + length)
        token_ids += row.tokens[row.done : row.done + length]
        positions += where
        slots += [(RESERVED_PAGES + row.blocks.start) * page_size + at for at in where]
        starts.append(starts[-1] + length)
    width = max(len(row.blocks) for row, _ in parts)
    pages = [[RESERVED_PAGES + block for block in row.blocks] for row, _ in parts]
    table = [[*mine, *[0] * (width - len(mine))] for mine in pages]
    seq_lens = [row.done + length for row, length in parts]
    return StepBatch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        q_starts=torch.tensor(starts, dtype=torch.int32, device=device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        page_table=torch.tensor(table, dtype=torch.int32, device=device),
        logit_rows=torch.arange(len(token_ids), device=device),
        q_lens_host=[length for _, length in parts],
        seq_lens_host=seq_lens,
    )


def _errors(ours_nV: torch.Tensor, theirs_TV: torch.Tensor) -> torch.Tensor:
    """Of each of the n first tokens."""
    if not len(ours_nV):
        return ours_nV
    return (ours_nV - theirs_TV[: len(ours_nV)]).abs().mean(-1) / theirs_TV.std()


def _small(errors: torch.Tensor, exact: bool) -> bool:
    return bool((errors < _EXACT).all() if exact else errors.median() < _ROUNDED)


def _by_step(errors: Sequence[torch.Tensor], steps: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    """The rows' errors, [n] each, as [m] of each step that had tokens."""
    for step in range(len(steps)):
        spans = [(sum(lengths[:step]), lengths[step]) for lengths in zip(*steps, strict=True)]
        parts = [each[start : start + length] for each, (start, length) in zip(errors, spans, strict=True)]
        if sum(map(len, parts)):
            yield torch.cat(parts)
