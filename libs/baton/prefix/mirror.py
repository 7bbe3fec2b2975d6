"""A router's copy of the prefix index of one namespace, and the question it answers: who holds how much of a prompt?

Pure memory. `sync.py` feeds it; nothing here waits. Not thread-safe: one event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.core.tiers import Tier
from baton.prefix.records import BlockBatch, BlockEvent, IndexSnapshot, WorkerGone, unpack_hashes


@dataclass(slots=True)
class _Held:
    """A worker's blocks; each is in the set of its nearest tier, Tier.POOL first."""

    epoch: int
    seq: int
    tiers: tuple[set[bytes], ...] = field(default_factory=lambda: tuple(set() for _ in Tier))

    def __len__(self) -> int:
        return sum(map(len, self.tiers))

    def within(self, block_hash: bytes, tier: Tier) -> bool:
        """Whether the block is in `tier` or nearer."""
        return any(block_hash in blocks for blocks in self.tiers[: tier + 1])


class PrefixMirror:
    """Blocks by worker. About 100 bytes per worker and block (benchmarks/prefix_index.py).

    A worker's blocks are closed under "parent of", and so are those of each tier with the nearer ones: a radix cache
    stores parents first and evicts leaves first, tiers let go of leaves first, and batches keep that order. So the
    leading run of a prompt that a worker holds is found by bisection: 14 set look-ups per worker and tier for 128k
    tokens in blocks of 16. Where the rule is broken for a moment, the answer still ends at a block that is held (or is
    0) and before one that is not: an estimate, which costs time but never correctness.

    That is so where a block is one page. Workers whose blocks have pages of several kinds, which go one by one, name
    those that are whole; the others count only on the way to them. `first_needed(n)` is the first block that must be
    whole for a prefix of n blocks to be of use; then all names are looked up, from the end.

    `max_blocks` bounds the memory; what comes beyond it is left out and counted in `dropped_blocks`.
    """

    def __init__(self, max_blocks: int = 50_000_000, first_needed: Callable[[int], int] | None = None) -> None:
        self.first_needed = first_needed
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
            tiers = (known.blocks, known.host, known.disk)
            size = sum(map(len, tiers))
            held = self._workers[worker_id] = _Held(known.epoch, known.seq)
            if self._blocks + size <= self._max_blocks:
                held.tiers = tiers
                self._blocks += size
                continue
            for tier in Tier:
                self._place(held, tiers[tier], tier)

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
        for tier, packed in event.placed().items():
            self._place(held, unpack_hashes(packed), tier)
        before, removed = len(held), unpack_hashes(event.removed)
        for blocks in held.tiers:
            blocks.difference_update(removed)
        self._blocks -= before - len(held)
        return True

    def remove_worker(self, worker_id: str, epoch: int) -> None:
        """Drop all that `epoch`, or an older one, of a worker held."""
        held = self._workers.get(worker_id)
        if held is not None and held.epoch <= epoch:
            self._blocks -= len(held)
            del self._workers[worker_id]

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Leading blocks of `hashes` that each worker holds in any tier; workers that hold none are left out.

        Microseconds, whatever the prompt's length, where it is a bisection per worker that holds the first block.
        """
        if not hashes:
            return {}
        runs = {worker_id: self._run(held, hashes, max(Tier)) for worker_id, held in self._workers.items()}
        return {worker_id: run for worker_id, run in runs.items() if run}

    def reach(self, worker_id: str, hashes: Sequence[bytes]) -> list[int]:
        """Leading blocks of `hashes` that the worker holds in its pool; in that or in memory; in any tier."""
        held = self._workers.get(worker_id)
        reach: list[int] = []
        for tier in Tier:
            run = self._run(held, hashes, tier) if held is not None and hashes else 0
            reach.append(max([run, *reach]))
        return reach

    def _run(self, held: _Held, hashes: Sequence[bytes], tier: Tier) -> int:
        if self.first_needed is None:
            return _leading_run(held, hashes, tier)
        return _usable_run(held, hashes, tier, self.first_needed)

    def _renew(self, event: BlockBatch) -> _Held:
        self.remove_worker(event.worker_id, event.epoch)
        held = self._workers[event.worker_id] = _Held(event.epoch, event.seq)
        return held

    def _place(self, held: _Held, hashes: set[bytes] | list[bytes], tier: Tier) -> None:
        """These blocks are in `tier` now, and in no other."""
        if not hashes:
            return
        before = len(held)
        for blocks in held.tiers:
            blocks.difference_update(hashes)
        room = self._max_blocks - self._blocks + before - len(held)
        if len(hashes) > room:
            self.dropped_blocks += len(hashes) - room
            hashes = list(hashes)[:room]
        held.tiers[tier].update(hashes)
        self._blocks += len(held) - before


def _leading_run(held: _Held, hashes: Sequence[bytes], tier: Tier) -> int:
    """An n with hashes[n - 1] held in `tier` or nearer and hashes[n] not; 0 when hashes[0] is not, else all if the last
    one is."""
    if not held.within(hashes[0], tier):
        return 0
    if held.within(hashes[-1], tier):
        return len(hashes)
    last, missing = 0, len(hashes) - 1
    while missing - last > 1:
        middle = (last + missing) // 2
        if held.within(hashes[middle], tier):
            last = middle
        else:
            missing = middle
    return missing


def _usable_run(held: _Held, hashes: Sequence[bytes], tier: Tier, first_needed: Callable[[int], int]) -> int:
    """The most blocks of which all that are needed are held in `tier` or nearer."""
    end = at = len(hashes) if len(held) else 0
    first = first_needed(end)
    while at > first:
        at -= 1
        if not held.within(hashes[at], tier):
            end = at
            first = first_needed(end)
    return end
