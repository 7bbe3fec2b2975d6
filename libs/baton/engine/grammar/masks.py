"""The masks of one step, made on a thread beside the one that runs the model, while it runs.

In three acts, like the draws: `MaskPlan` is prepared on the host with the step, `start` begins the work when the step's
forward is launched, and `StepMasks` is what the draw waits for. A row whose last token the host does not know yet gets
it from the device when the step before has drawn it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from baton.core.errors import BatonError, InternalError
from baton.engine.grammar.bits import bar_unset
from baton.engine.grammar.compiler import mask_words
from baton.engine.grammar.matcher import Matcher, clear_bits

_EVERYTHING = -1  # a word with all bits set


@dataclass(frozen=True, slots=True)
class MaskRow:
    """A draw that obeys a grammar: row `row` of the step's draws.

    `output`: the request's output tokens that the host knows, from number `since` on. `late_place`: where in the token
    pool the one after them is, if the step before draws it. `barred`: tokens that `min_tokens` bars; where the grammar
    has no other, it wins.
    """

    row: int
    matcher: Matcher
    since: int
    output: npt.NDArray[Any]
    late_place: int | None = None
    barred: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class StepMasks:
    """Masks of a step, on the host: `bits` int32 [M, W] are of the draws `rows`.

    `failed`: draws whose grammar gave no mask; they are drawn like others and must not be used. `forced`: of late
    draws, the tokens that must come from them on.
    """

    rows: list[int]
    bits: torch.Tensor
    failed: dict[int, BatonError] = field(default_factory=dict)
    forced: dict[int, Sequence[int]] = field(default_factory=dict)
    seconds: float = 0.0

    def bar(self, logits: torch.Tensor) -> None:
        """Bar what the grammars do not allow from the draws' logits [N, V], in place. The host waits for nothing."""
        device = logits.device
        rows = torch.tensor(self.rows, dtype=torch.int64)
        bar_unset(logits, rows.to(device, non_blocking=True), self.bits.to(device, non_blocking=True))


class MaskThread:
    """The thread that makes masks. One step's at a time."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._words = mask_words(vocab_size)
        self._pin = device.type == "cuda"
        self._executor = ThreadPoolExecutor(1, "masks")

    def start(self, rows: Sequence[MaskRow], tokens: torch.Tensor) -> Future[StepMasks]:
        """Begin with a step's masks. `tokens`: the token pool, as the step before leaves it; read before this returns,
        or, on a GPU, in the order of its current stream."""
        late = [row.late_place for row in rows if row.late_place is not None]
        return self._executor.submit(self._make, rows, _on_its_way(tokens, late))

    def close(self) -> None:
        self._executor.shutdown()

    def _make(self, rows: Sequence[MaskRow], late_ids: Callable[[], list[int]]) -> StepMasks:
        late = iter(late_ids())
        started = time.perf_counter()
        bits = torch.empty((len(rows), self._words), dtype=torch.int32, pin_memory=self._pin)
        masks = StepMasks([row.row for row in rows], bits)
        for row, words in zip(rows, bits.numpy(), strict=True):
            token_id = None if row.late_place is None else next(late)
            try:
                _fill(row, token_id, words)
            except BatonError as error:
                words.fill(_EVERYTHING)
                masks.failed[row.row] = error
            except Exception as error:
                words.fill(_EVERYTHING)
                masks.failed[row.row] = InternalError(f"a grammar's mask failed: {type(error).__name__}: {error}")
            else:
                if token_id is not None:
                    masks.forced[row.row] = row.matcher.forced()
        return StepMasks(masks.rows, bits, masks.failed, masks.forced, time.perf_counter() - started)


def _fill(row: MaskRow, late_id: int | None, words: npt.NDArray[np.int32]) -> None:
    row.matcher.follow(row.output, row.since)
    if late_id is not None:
        row.matcher.follow_one(late_id)
    row.matcher.fill(words)
    if row.barred:
        clear_bits(words, row.barred)


def _on_its_way(tokens: torch.Tensor, places: list[int]) -> Callable[[], list[int]]:
    """Token ids of these places, as they are at this point of the device's work; to be called on any thread."""
    if not places or tokens.device.type != "cuda":
        values = tokens[places].tolist() if places else []
        return lambda: values
    host = torch.empty(len(places), dtype=tokens.dtype, pin_memory=True)
    host.copy_(tokens[torch.tensor(places, device=tokens.device)], non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[int]:
        copied.synchronize()
        return host.tolist()

    return read
