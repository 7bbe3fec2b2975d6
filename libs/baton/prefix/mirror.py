"""A router's copy of the prefix index of one namespace, and the question it answers: who holds how much of a prompt?

Pure memory. `sync.py` feeds it; nothing here waits. Not thread-safe: one event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.prefix.records import BlockBatch, BlockEvent, IndexSnapshot, WorkerGone, unpack_hashes


@dataclass(slots=True)
class _Held:
    epoch: int
    seq: int
    blocks: set[bytes] = field(default_factory=set)


class PrefixMirror:
    """Blocks by worker. About 100 bytes per worker and block (benchmarks/prefix_index.py).

    A worker's blocks are closed under "parent of": a radix cache stores parents first and evicts leaves first, and
    batches keep that order. So the leading run of a prompt that a worker holds is found by bisection: 14 set look-ups
    per worker for 128k tokens in blocks of 16. Where the rule is broken for a moment, the answer still ends at a block
    that is held (or is 0) and before one that is not: an estimate, which costs time but never correctness.

    `max_blocks` bounds the memory; what comes beyond it is left out and counted in `dropped_blocks`.
    """

    def __init__(self, max_blocks: int = 50_000_000) -> None:
        self._workers: dict[str, _Held] = {}
        self._max_blocks = max_blocks
        self._blocks = 0
        self.dropped_blocks = 0

    @property
    def blocks(self) -> int:
        """Entries, counted once per worker that holds them."""
        return self._blocks

    @property
    def workers(self) -> list[str]:
        return list(self._workers)

    def epoch(self, worker_id: str) -> int | None:
        """The incarnation whose blocks are known, or None."""
        held = self._workers.get(worker_id)
        return held.epoch if held else None

    def load(self, snapshot: IndexSnapshot) -> None:
        """Replace everything. The mirror takes the snapshot's sets over: no copy."""
        self._workers.clear()
        self._blocks = 0
        for worker_id, known in snapshot.workers.items():
            held = self._workers[worker_id] = _Held(known.epoch, known.seq)
            if self._blocks + len(known.blocks) <= self._max_blocks:
                held.blocks = known.blocks
                self._blocks += len(known.blocks)
            else:
                self._store(held, known.blocks)

    def apply(self, event: BlockEvent) -> bool:
        """Apply one event in stream order. Events of old epochs, and those a snapshot already held, change nothing.

        Returns False when events of this worker are missing: a new snapshot is needed.
        """
        if isinstance(event, WorkerGone):
            self.remove_worker(event.worker_id, event.epoch)
            return True
        held = self._workers.get(event.worker_id)
        if held is not None and event.epoch < held.epoch:
            return True
        if held is None or event.epoch > held.epoch:
            if not event.reset and event.seq != 1:
                return False
            held = self._renew(event)
        elif event.seq <= held.seq:
            return True
        elif event.reset:
            held = self._renew(event)
        elif event.seq != held.seq + 1:
            return False
        held.seq = event.seq
        self._store(held, unpack_hashes(event.stored))
        before = len(held.blocks)
        held.blocks.difference_update(unpack_hashes(event.removed))
        self._blocks -= before - len(held.blocks)
        return True

    def remove_worker(self, worker_id: str, epoch: int) -> None:
        """Drop all that `epoch`, or an older one, of a worker held."""
        held = self._workers.get(worker_id)
        if held is not None and held.epoch <= epoch:
            self._blocks -= len(held.blocks)
            del self._workers[worker_id]

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Leading blocks of `hashes` that each worker holds; workers that hold none are left out.

        Microseconds, whatever the prompt's length: a bisection per worker that holds the first block.
        """
        if not hashes:
            return {}
        return {
            worker_id: _leading_run(held.blocks, hashes)
            for worker_id, held in self._workers.items()
            if hashes[0] in held.blocks
        }

    def _renew(self, event: BlockBatch) -> _Held:
        self.remove_worker(event.worker_id, event.epoch)
        held = self._workers[event.worker_id] = _Held(event.epoch, event.seq)
        return held

    def _store(self, held: _Held, hashes: set[bytes] | list[bytes]) -> None:
        room = self._max_blocks - self._blocks
        if len(hashes) > room:
            self.dropped_blocks += len(hashes) - room
            hashes = list(hashes)[:room]
        before = len(held.blocks)
        held.blocks.update(hashes)
        self._blocks += len(held.blocks) - before


def _leading_run(blocks: set[bytes], hashes: Sequence[bytes]) -> int:
    """Largest n with hashes[n - 1] held and hashes[n] not, hashes[0] being held."""
    if hashes[-1] in blocks:
        return len(hashes)
    held, missing = 0, len(hashes) - 1
    while missing - held > 1:
        middle = (held + missing) // 2
        if hashes[middle] in blocks:
            held = middle
        else:
            missing = middle
    return missing
