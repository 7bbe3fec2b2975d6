"""The mirror against brute force."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton.core.hashing import block_hashes
from baton.core.tiers import Tier
from baton.prefix.mirror import PrefixMirror
from baton.prefix.records import BlockBatch, IndexSnapshot, WorkerBlocks, WorkerGone


def block(*path: int) -> bytes:
    """Hash of the block at the end of `path` in a tree of prefixes."""
    return block_hashes(b"root", path, 1)[-1]


def leading_run(held: set[bytes], hashes: list[bytes]) -> int:
    return next((n for n, item in enumerate(hashes) if item not in held), len(hashes))


PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=7)


class MirrorAgainstRadixCaches(RuleBasedStateMachine):
    """Workers store prefixes, move leaves to slower tiers, evict them, restart and vanish; the mirror hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = PrefixMirror()
        self.held: dict[str, dict[tuple[int, ...], Tier]] = {}
        self.epochs: dict[str, int] = {}
        self.seqs: dict[str, int] = {}

    def send(self, worker: str, reset: bool = False, **blocks: list[bytes]) -> None:
        self.seqs[worker] = self.seqs.get(worker, 0) + 1
        packed = {field: b"".join(hashes) for field, hashes in blocks.items()}
        batch = BlockBatch(worker, self.epochs[worker], self.seqs[worker], reset=reset, **packed)
        assert self.mirror.apply(batch)
        assert self.mirror.apply(batch), "the same event again changes nothing"

    @rule(worker=st.sampled_from("ab"), path=PATHS)
    def store(self, worker: str, path: list[int]) -> None:
        held = self.held.setdefault(worker, {})
        self.epochs.setdefault(worker, 1)
        prefixes = [tuple(path[: n + 1]) for n in range(len(path))]
        self.send(worker, stored=[block(*prefix) for prefix in prefixes])
        held.update(dict.fromkeys(prefixes, Tier.POOL))

    @rule(worker=st.sampled_from("ab"), choice=st.integers(0, 1 << 16), tier=st.sampled_from([Tier.HOST, Tier.DISK]))
    def sink(self, worker: str, choice: int, tier: Tier) -> None:
        """A block goes to `tier`, behind those that follow it."""
        held = self.held.get(worker, {})
        paths = sorted(
            path for path in held if held[path] < tier and all(held.get((*path, n), tier) >= tier for n in (0, 1))
        )
        if paths:
            path = paths[choice % len(paths)]
            self.send(worker, **{tier.name.lower(): [block(*path)]})
            held[path] = tier

    @rule(worker=st.sampled_from("ab"), choice=st.integers(0, 1 << 16))
    def evict_leaf(self, worker: str, choice: int) -> None:
        held = self.held.get(worker, {})
        leaves = sorted(path for path in held if not any(len(o) > len(path) and o[: len(path)] == path for o in held))
        if leaves:
            leaf = leaves[choice % len(leaves)]
            self.send(worker, removed=[block(*leaf)])
            del held[leaf]

    @rule(worker=st.sampled_from("ab"))
    def restart(self, worker: str) -> None:
        if worker in self.epochs:
            old = BlockBatch(worker, self.epochs[worker], self.seqs[worker] + 1, block(0, 0, 0))
            self.epochs[worker] += 1
            self.seqs[worker] = 0
            self.held[worker] = {}
            self.send(worker, reset=True)
            assert self.mirror.apply(old), "a late event of the old epoch is no gap"

    @rule(worker=st.sampled_from("ab"))
    def gone(self, worker: str) -> None:
        if worker in self.epochs:
            self.mirror.apply(WorkerGone(worker, self.epochs[worker] - 1))
            self.mirror.apply(WorkerGone(worker, self.epochs[worker]))
            self.epochs[worker] += 1
            self.seqs[worker] = 0
            self.held[worker] = {}

    @rule(worker=st.sampled_from("ab"))
    def gap(self, worker: str) -> None:
        if self.seqs.get(worker):
            ahead = BlockBatch(worker, self.epochs[worker], self.seqs[worker] + 2, block(1, 1))
            assert not self.mirror.apply(ahead)

    @rule()
    def snapshot(self) -> None:
        workers = {
            worker: WorkerBlocks(
                self.epochs[worker],
                self.seqs[worker],
                *({block(*path) for path in held if held[path] is tier} for tier in Tier),
            )
            for worker, held in self.held.items()
        }
        self.mirror.load(IndexSnapshot("0-0", workers))

    @invariant()
    def matches_brute_force(self) -> None:
        assert self.mirror.blocks == sum(len(held) for held in self.held.values())
        for prompt in ([0] * 7, [1, 0, 1, 0, 1, 0, 1], [0, 1], [1]):
            hashes = [block(*prompt[: n + 1]) for n in range(len(prompt))]
            runs = {w: leading_run({block(*p) for p in held}, hashes) for w, held in self.held.items()}
            assert self.mirror.match(hashes) == {worker: run for worker, run in runs.items() if run}
            for worker, held in self.held.items():
                within = [{block(*path) for path in held if held[path] <= tier} for tier in Tier]
                assert self.mirror.reach(worker, hashes) == [leading_run(blocks, hashes) for blocks in within]


TestMirrorAgainstRadixCaches = MirrorAgainstRadixCaches.TestCase


@given(st.sets(st.integers(0, 20)), st.integers(1, 21))
def test_any_set_gives_a_run_that_ends_at_an_edge(held: set[int], length: int) -> None:
    """Even for sets that no radix cache would publish, the answer ends between a held block and a missing one."""
    hashes = [bytes([n]) * 16 for n in range(length)]
    mirror = PrefixMirror()
    mirror.apply(BlockBatch("w", 1, 1, b"".join(bytes([n]) * 16 for n in held)))
    run = mirror.match(hashes).get("w", 0)
    assert run == 0 or run - 1 in held
    assert run == length or run not in held
    assert mirror.reach("w", hashes) == [run] * 3 and mirror.reach("nobody", hashes) == [0] * 3


def test_memory_is_bounded() -> None:
    mirror = PrefixMirror(max_blocks=10)
    for worker in "ab":
        hashes = b"".join(block(ord(worker), n) for n in range(8))
        assert mirror.apply(BlockBatch(worker, 1, 1, hashes))
    assert mirror.blocks == 10
    assert mirror.dropped_blocks == 6
    mirror.remove_worker("a", 1)
    assert mirror.blocks == 2


def test_no_hashes_match_nobody() -> None:
    assert PrefixMirror().match([]) == {}


def test_a_match_of_128k_tokens_takes_well_under_a_millisecond() -> None:
    hashes = block_hashes(b"root", list(range(8192)), 1)
    mirror = PrefixMirror()
    for worker in range(16):
        mirror.apply(BlockBatch(f"w{worker}", 1, 1, b"".join(hashes[: 8192 - worker])))
    best = 1.0
    for _ in range(20):
        started = time.perf_counter()
        matched = mirror.match(hashes)
        best = min(best, time.perf_counter() - started)
    assert matched == {f"w{worker}": 8192 - worker for worker in range(16)}
    assert best < 0.001


@given(
    st.lists(st.sampled_from([None, *Tier]), min_size=1, max_size=24),
    st.integers(1, 6),
)
def test_blocks_that_have_lost_some_of_their_pages(places: list[Tier | None], window: int) -> None:
    """Whole blocks are told of alone: a prefix is of use where the last `window` ones are whole."""
    mirror = PrefixMirror(first_needed=lambda blocks: max(0, blocks - window))
    hashes = [bytes([n]) * 16 for n in range(len(places))]
    told = {tier: b"".join(h for h, at in zip(hashes, places, strict=True) if at is tier) for tier in Tier}
    mirror.apply(BlockBatch("w", 1, 1, told[Tier.POOL], host=told[Tier.HOST], disk=told[Tier.DISK]))

    def most(farthest: Tier) -> int:
        held = [at is not None and at <= farthest for at in places]
        return max(n for n in range(len(held) + 1) if all(held[max(0, n - window) : n]))

    assert mirror.match(hashes).get("w", 0) == most(Tier.DISK)
    assert mirror.reach("w", hashes) == [most(tier) for tier in Tier]
