"""An engine with a host tier: what leaves the pool comes back as it was, and the index is told the truth."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from engine_harness import ROOT, SMALL, Harness, prompt

from baton.core.attempt import Attempt
from baton.core.hashing import block_hashes
from baton.core.tiers import Tier
from baton.engine.api import StepOutput
from baton.engine.batch import ModelRunner
from baton.engine.radix import RadixCache
from baton.testing.toy_model import TOY_LAYOUT, toy_reference

pytestmark = pytest.mark.usefixtures("loop")

PAGE = TOY_LAYOUT.page_size


class Tiered(Harness):
    """An engine, and its agent's tier by hand: at most `blocks` blocks, the first ones in are the first ones out."""

    def __init__(self, pages: int, free_pages: int, blocks: int = 1000, runner: ModelRunner | None = None) -> None:
        super().__init__(pages, SMALL, runner)
        self.kept: dict[bytes, torch.Tensor] = {}
        self.room = blocks
        self.restored = 0
        self.engine.use_tier(free_pages)

    def step(self) -> StepOutput:
        output = super().step()
        for batch in output.moved_out:
            for block_hash, page in zip(batch.block_hashes, batch.page_ids, strict=True):
                self.kept[block_hash] = self.pool.tensor[:, page].clone()
            dropped = list(self.kept)[: max(0, len(self.kept) - self.room)]
            for block_hash in dropped:
                del self.kept[block_hash]
            self.engine.moved(batch.number)
            self.engine.tiered(dropped, None)
        return output

    def restore(self, attempt: Attempt, most: int = 1000) -> None:
        reserved = self.reserved.pop(attempt)
        assert reserved.from_tier
        came = 0
        for block_hash, page in zip(reserved.block_hashes[:most], reserved.page_ids, strict=False):
            if block_hash not in self.kept:
                break
            self.pool.tensor[:, page] = self.kept[block_hash]
            came += 1
        self.restored += came
        if self.pool.layout.groups:
            self.engine.pulled(attempt, reserved.tokens if came == len(reserved.page_ids) else 0)
        else:
            self.engine.pulled(attempt, (reserved.first_page + came) * PAGE if came else 0)

    def search(
        self, choose: random.Random, rounds: int, variety: int, expected_of: Callable[[list[int], int], list[int]]
    ) -> None:
        """Requests that share prefixes, at most `variety` different ones, whose restores come whole, in part or not at
        all, in any order. All that were not cancelled end with the tokens that they should have."""
        stems = [prompt(length, seed=7 + length) for length in (16, 24, 32, 36)]
        expected: dict[Attempt, list[int]] = {}
        for n in range(rounds):
            tokens = stems[n // 4 % 4] + prompt(choose.randint(1, 12), seed=n * variety // rounds)
            expected[self.submit(f"r{n}", tokens, 6)] = expected_of(tokens, 6)
            for _ in range(choose.randint(2, 20)):
                if self.engine.has_work and choose.random() < 0.8:
                    self.step()
                elif self.reserved:
                    attempt = choose.choice(list(self.reserved))
                    if choose.random() < 0.1:
                        self.engine.cancel(attempt)
                        del expected[attempt]
                    self.restore(attempt, choose.choice([0, 2, 1000, 1000, 1000]))
        self.run_all()
        for attempt, tokens in expected.items():
            assert self.outputs[attempt] == tokens
        assert self.restored > 5, "the search is not about nothing"
        assert self.engine.load().lent_pages == 0

    def run_all(self) -> None:
        """Run and restore until there is nothing to do."""
        self.run()
        while self.reserved:
            self.restore(next(iter(self.reserved)))
            self.run()

    def assert_announced(self) -> None:
        """What the index was told is what cache and tier hold."""
        cache = self.engine._ledger.cache
        assert self.blocks == set(cache._nodes) | set(cache.elsewhere)
        assert set(cache.elsewhere) == set(self.kept)


def test_what_leaves_the_pool_comes_back() -> None:
    engine = Tiered(pages=2 + 24, free_pages=16)
    first, others = prompt(50), [prompt(50, seed) for seed in (1, 2)]
    for name, tokens in (("a", first), ("b", others[0]), ("c", others[1])):
        engine.submit(name, tokens, 4)
        engine.run()
    assert set(block_hashes(ROOT, first, PAGE)) <= set(engine.kept), "the oldest went first"
    computed = sum(step.extend_tokens for step in engine.steps)
    again = engine.submit("a2", [*first, 1, 2], 4)
    engine.run_all()
    assert engine.outputs[again] == toy_reference([*first, 1, 2], 4)
    assert engine.restored >= 11 and engine.cached[again] == 48
    assert sum(step.extend_tokens for step in engine.steps) - computed == 4
    engine.assert_announced()


def test_pages_are_kept_free_and_stay_as_they_are_while_they_are_copied() -> None:
    engine = Harness(pages=2 + 24)
    engine.engine.use_tier(8)
    for seed in range(3):
        engine.submit(f"r{seed}", prompt(28, seed), 2)
        engine.run()
    moved = [batch for step in engine.steps for batch in step.moved_out]
    assert moved
    pages = [page for batch in moved for page in batch.page_ids]
    before = engine.pool.tensor[:, pages].clone()
    engine.submit("more", prompt(30, seed=9), 2)
    engine.run()
    assert torch.equal(engine.pool.tensor[:, pages], before), "a page was reused before its copy was there"
    free = engine.engine.load().free_pages
    for batch in moved:
        engine.engine.moved(batch.number)
        engine.engine.moved(batch.number)
    assert engine.engine.load().free_pages == free + len(pages)


def test_without_a_tier_any_more_the_blocks_are_gone() -> None:
    engine = Tiered(pages=2 + 24, free_pages=8)
    for seed in range(3):
        engine.submit(f"r{seed}", prompt(50, seed), 4)
        engine.run()
    gone = set(engine.kept) - set(engine.engine._ledger.cache._nodes)
    assert gone
    engine.engine.use_tier(0)
    engine.kept.clear()
    engine.run()
    assert not gone & engine.blocks
    engine.assert_announced()
    attempt = engine.submit("again", prompt(50, 0), 4)
    engine.run()
    assert attempt not in engine.reserved and engine.outputs[attempt] == toy_reference(prompt(50, 0), 4)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_moves_and_restores(seed: int) -> None:
    """A small pool, a small tier, restores that come whole, in part or not at all: tokens stay the reference's."""
    choose = random.Random(seed)
    engine = Tiered(pages=2 + 44, free_pages=20, blocks=choose.choice([40, 80, 200]))
    engine.search(choose, rounds=60, variety=60, expected_of=toy_reference)
    engine.run()
    engine.assert_announced()


@pytest.mark.parametrize("seed", range(4))
def test_announcements_follow_blocks_that_are_here_or_elsewhere(seed: int) -> None:
    """The cache alone: whatever moves, is dropped or comes again, each change of a block's place is told, once."""
    choose = random.Random(seed)
    cache, page = RadixCache(), 2
    told: dict[bytes, Tier] = {}
    chains = [block_hashes(ROOT, prompt(40, seed=n), PAGE) for n in range(4)]
    for _ in range(400):
        action = choose.random()
        if action < 0.4:
            hashes = choose.choice(chains)
            held = cache.match(hashes, len(hashes))
            node, _ = cache.acquire(hashes, held)
            end = min(len(hashes), held + choose.randint(1, 4))
            insertion = cache.insert(node, hashes[held:end], list(range(page, page + end - held)))
            page += end - held
            cache.release(insertion.node)
        elif action < 0.6:
            gone = [cache.evict_one() for _ in range(choose.randint(1, 5))]
            cache.place([block[0] for block in gone if block is not None], Tier.HOST)
        elif action < 0.75:
            cache.evict(choose.randint(1, 3))
        elif cache.elsewhere:
            known = choose.sample(sorted(cache.elsewhere), min(2, len(cache.elsewhere)))
            cache.place(known, choose.choice([Tier.HOST, Tier.DISK, None]))
        if choose.random() < 0.3:
            stored, removed, tiered = cache.drain_events()
            changes = {**dict.fromkeys(stored, Tier.POOL), **dict.fromkeys(removed), **dict(tiered)}
            assert len(changes) == len(stored) + len(removed) + len(tiered)
            assert all(told.get(block_hash) != tier for block_hash, tier in changes.items())
            told = {name: tier for name, tier in (told | changes).items() if tier is not None}
            assert told == cache.elsewhere | dict.fromkeys(cache._nodes, Tier.POOL)
            assert cache.host_blocks == list(cache.elsewhere.values()).count(Tier.HOST)
