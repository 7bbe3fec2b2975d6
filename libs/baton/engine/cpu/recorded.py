"""Decode steps of few rows as recordings: what CUDA graphs are on a GPU.

A layer is some ten calls of kernels from Python, and in every step the model's weights drive Python out of the caches:
a step of one row of a small model spends a fifth of its time there. The first step with so many rows is recorded: which
kernels it calls, with what arguments. Later ones put what differs (embedded tokens, angles, page tables) into the same
memory and make all calls at once. Recorded or not, a step's result is the same to the last bit.

A recording is right only if kernels are all that there is between the first layer and the last, and their arguments
depend on the number of rows alone. So torch is watched while a step is recorded, for operations that compute or read
anything; and the calls are made once more, in other memory with nothing in it, which must give the same result. What
fails one of these runs as before, and is never recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from baton.engine.batch import StepBatch
from baton.engine.cpu.library import Kernels
from baton.engine.cpu.tape import PackedCall, Tape
from baton.engine.model.decoder import Embedded

MOST_ROWS = 32  # more rows spend little of their time in Python
MOST_STATE_BYTES = 512 << 20  # of a step's rows, which are kept twice while it is recorded; larger steps gain nothing


@dataclass(frozen=True, slots=True)
class _Recording:
    tape: Tape
    calls: ctypes.Array[PackedCall]
    embedded: Embedded  # the memory that the calls begin with
    between: torch.Tensor
    hidden: torch.Tensor  # the memory that they end with, a part of `between`


class RecordedSteps:
    """Steps by `through_layers`, of a model on one bound pool. Use from one thread at a time.

    `kernels` are those that the model calls, and nobody else.
    """

    def __init__(
        self,
        kernels: Kernels,
        through_layers: Callable[[Embedded, StepBatch], torch.Tensor],
        saved: Callable[[], Callable[[], None]],
        state_bytes: int,
    ) -> None:
        """`saved()` brings states that the planned step reads, and may write over, back to what they are; a row has so
        many bytes of them."""
        self._kernels = kernels
        self._through_layers = through_layers
        self._saved = saved
        self._state_bytes = state_bytes
        self._recordings: dict[int, _Recording] = {}
        self._possible = True

    def fits(self, batch: StepBatch) -> bool:
        """Whether `run` may get it: few rows, with one new token each, of which all logits are wanted."""
        rows = len(batch.q_lens_host)
        few = rows <= MOST_ROWS and rows * self._state_bytes <= MOST_STATE_BYTES
        return self._possible and batch.is_decode and few

    def run(self, embedded: Embedded, batch: StepBatch) -> torch.Tensor:
        """What `through_layers` returns, for a batch that fits, and that attention has planned. A later call writes to
        its memory."""
        recording = self._recordings.get(len(batch.token_ids))
        return self._record(embedded, batch) if recording is None else self._again(recording, embedded)

    def _again(self, recording: _Recording, embedded: Embedded) -> torch.Tensor:
        recording.embedded.hidden_TE.copy_(embedded.hidden_TE)
        for kept, new in zip(recording.embedded.angles, embedded.angles, strict=True):
            kept[0].copy_(new[0])
            kept[1].copy_(new[1])
        self._kernels.run(recording.calls)
        return recording.hidden

    def _record(self, embedded: Embedded, batch: StepBatch) -> torch.Tensor:
        before, restore = Embedded(embedded.hidden_TE.clone(), embedded.angles), self._saved()
        with self._kernels.recording() as tape, _Watch() as watch:
            hidden = self._through_layers(embedded, batch)
        if watch.others:
            return self._give_up(hidden)
        between, moved = tape.relocate(watch.made, hidden)
        recording = _Recording(tape, tape.packed(), embedded, between, moved)
        between.fill_(0xFF)  # NaN in any type
        restore()
        if not torch.equal(self._again(recording, before), hidden):
            restore()
            return self._give_up(self._through_layers(before, batch))
        self._recordings[len(batch.token_ids)] = recording
        return hidden

    def _give_up(self, hidden: torch.Tensor) -> torch.Tensor:
        self._possible = False
        self._recordings.clear()
        return hidden


class _Watch(TorchDispatchMode):
    """Notes what torch does: tensors that are made, and operations (`others`) that compute or read anything."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[torch.Tensor] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, list | tuple) else [result]
        if func in _MAKERS:
            self.made += results
        elif func._schema.is_mutable or not all(_is_view(each, args[0]) for each in results):
            self.others.append(str(func))
        return result


_MAKERS = frozenset(
    {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default}
)


def _is_view(result: Any, of: Any) -> bool:
    if not isinstance(result, torch.Tensor) or not isinstance(of, torch.Tensor):
        return False
    return result.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()
