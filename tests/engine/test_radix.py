"""The radix cache, by example and against a brute-force model."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.core.errors import InternalError
from baton.core.hashing import block_hashes
from baton.engine.radix import Node, RadixCache

ROOT = b"root"


def chain(*blocks: int) -> list[bytes]:
    """Hashes of blocks of one token each."""
    return block_hashes(ROOT, blocks, 1)


def cached(cache: RadixCache, blocks: list[int], first_page: int) -> None:
    node, held = cache.acquire(chain(*blocks), cache.match(chain(*blocks), len(blocks)))
    fresh = list(range(first_page, first_page + len(blocks) - len(held)))
    cache.release(cache.insert(node, chain(*blocks)[len(held) :], fresh).node)


def test_shares_leading_blocks_and_branches_where_tokens_differ() -> None:
    cache = RadixCache()
    cached(cache, [1, 2, 3], 10)
    cached(cache, [1, 2, 4], 20)
    assert cache.match(chain(1, 2, 3), 9) == 3
    assert cache.match(chain(1, 2, 4, 5), 9) == 3
    assert cache.match(chain(1, 9), 9) == 1
    assert cache.match(chain(2), 9) == 0
    node, pages = cache.acquire(chain(1, 2, 4), 3)
    assert pages == [10, 11, 20]
    cache.release(node)


def test_match_keeps_to_its_limit_and_forgives_a_wrong_hint() -> None:
    cache = RadixCache()
    cached(cache, list(range(20)), 100)
    for limit, hint in itertools.product(range(22), range(30)):
        assert cache.match(chain(*range(20), 77, 78), limit, hint) == min(limit, 20)


def test_duplicates_stay_with_the_caller() -> None:
    cache = RadixCache()
    cached(cache, [1, 2], 10)
    insertion = cache.insert(*_locked_root(cache), chain(1, 2, 3), [50, 51, 52])
    assert insertion.duplicates == [(0, 10), (1, 11)]
    assert insertion.node.page == 52
    assert cache.cached_pages == 3


def test_evicts_the_least_recently_used_leaf_first_and_never_what_is_held() -> None:
    cache = RadixCache()
    cached(cache, [1, 2, 3], 10)
    cached(cache, [1, 5], 20)
    cached(cache, [7], 30)
    node, _ = cache.acquire(chain(1, 2), 2)
    assert cache.evictable_pages == 3
    assert cache.evict(1) == [12]
    cached(cache, [1, 5], 99)  # used again
    assert cache.evict(5) == [30, 20]
    assert cache.evictable_pages == 0
    cache.release(node)
    assert cache.evict(5) == [11, 10]
    assert cache.cached_pages == 0


def test_use_of_an_evicted_leaf_counts_for_its_parent() -> None:
    cache = RadixCache()
    cached(cache, [1], 10)
    cached(cache, [2], 20)
    cached(cache, [1, 3], 11)  # a later use of [1], too
    cached(cache, [4], 40)
    assert cache.evict(4) == [20, 11, 10, 40]


def test_events_are_net() -> None:
    cache = RadixCache()
    cached(cache, [1, 2], 10)
    assert cache.drain_events() == (chain(1, 2), [], [])
    cached(cache, [7], 30)
    cache.evict(3)
    assert cache.drain_events() == ([], [chain(1, 2)[1], chain(1)[0]], [])
    assert not cache.has_events
    cached(cache, [1], 10)
    cache.drain_events()
    cache.evict(1)
    cached(cache, [1], 11)
    assert cache.drain_events() == ([], [], [])


def test_unlocking_twice_is_a_defect() -> None:
    cache = RadixCache()
    cached(cache, [1], 10)
    node, _ = cache.acquire(chain(1), 1)
    cache.release(node)
    with pytest.raises(InternalError, match="unlocked more often"):
        cache.release(node)


def test_depth_and_size_cost_little() -> None:
    cache = RadixCache()
    blocks = 20_000
    started = time.process_time()
    cached(cache, list(range(blocks)), 0)
    hashes = chain(*range(blocks))
    for _ in range(100):
        cache.release(cache.acquire(hashes, 10)[0])
        assert cache.match(hashes, blocks, blocks - 5) == blocks
    assert len(cache.evict(blocks)) == blocks
    assert time.process_time() - started < 2.0


def test_locking_again_and_again_does_not_grow_the_heap() -> None:
    cache = RadixCache()
    cached(cache, [1], 10)
    for _ in range(5_000):
        cache.release(cache.acquire(chain(1), 1)[0])
    assert len(cache._heap) <= 70


def _locked_root(cache: RadixCache) -> tuple[Node]:
    node, _ = cache.acquire([], 0)
    return (node,)


class CacheAgainstModel(RuleBasedStateMachine):
    """The model keeps prefixes as token tuples with the time of their last use, and does everything by brute force."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = RadixCache()
        self.pages: dict[tuple[int, ...], int] = {}
        self.used: dict[tuple[int, ...], int] = {}
        self.locks: list[tuple[tuple[int, ...], Node]] = []
        self.known: set[bytes] = set()
        self.next_page = 0
        self.now = 0

    def touch(self, prefix: tuple[int, ...]) -> None:
        self.now += 1
        for end in range(1, len(prefix) + 1):
            self.used[prefix[:end]] = self.now

    def longest(self, blocks: tuple[int, ...]) -> int:
        return max(end for end in range(len(blocks) + 1) if end == 0 or blocks[:end] in self.pages)

    def held(self, prefix: tuple[int, ...]) -> bool:
        return any(locked[: len(prefix)] == prefix for locked, _ in self.locks)

    @rule(blocks=st.lists(st.integers(0, 2), max_size=6).map(tuple), limit=st.integers(0, 7), hint=st.integers(0, 7))
    def match(self, blocks: tuple[int, ...], limit: int, hint: int) -> None:
        assert self.cache.match(chain(*blocks), limit, hint) == min(limit, self.longest(blocks))

    @rule(blocks=st.lists(st.integers(0, 2), max_size=6).map(tuple))
    def acquire(self, blocks: tuple[int, ...]) -> None:
        size = self.longest(blocks)
        node, pages = self.cache.acquire(chain(*blocks), size)
        assert pages == [self.pages[blocks[:end]] for end in range(1, size + 1)]
        self.touch(blocks[:size])
        self.locks.append((blocks[:size], node))

    @precondition(lambda self: self.locks)
    @rule(data=st.data(), tail=st.lists(st.integers(0, 2), max_size=4).map(tuple))
    def insert(self, data: st.DataObject, tail: tuple[int, ...]) -> None:
        index = data.draw(st.integers(0, len(self.locks) - 1))
        prefix, node = self.locks[index]
        blocks = prefix + tail
        own = list(range(self.next_page, self.next_page + len(tail)))
        self.next_page += len(tail)
        insertion = self.cache.insert(node, chain(*blocks)[len(prefix) :], own)
        expected = []
        for offset, page in enumerate(own):
            name = blocks[: len(prefix) + offset + 1]
            if name in self.pages:
                expected.append((offset, self.pages[name]))
            else:
                self.pages[name] = page
        assert insertion.duplicates == expected
        self.locks[index] = (blocks, insertion.node)
        self.touch(blocks)
        self.touch(prefix)

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        prefix, node = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        self.cache.release(node)
        self.touch(prefix)

    @rule(count=st.integers(0, 5))
    def evict(self, count: int) -> None:
        expected = []
        for _ in range(count):
            parents = {name[:-1] for name in self.pages}
            leaves = [name for name in self.pages if name not in parents and not self.held(name)]
            if not leaves:
                break
            oldest = min(leaves, key=lambda name: self.used[name])
            expected.append(self.pages.pop(oldest))
        assert self.cache.evict(count) == expected

    @rule()
    def drain(self) -> None:
        stored, removed, _ = self.cache.drain_events()
        assert not self.known & set(stored)
        assert set(removed) <= self.known
        self.known = (self.known | set(stored)) - set(removed)
        assert self.known == {chain(*name)[-1] for name in self.pages}

    @invariant()
    def accounts_for_all_pages(self) -> None:
        pages = self.cache.audit(Counter(node for _, node in self.locks))
        assert sorted(pages) == sorted(self.pages.values())
        assert len(set(pages)) == len(pages)
        assert self.cache.evictable_pages == sum(not self.held(name) for name in self.pages)


CacheAgainstModel.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
test_cache_against_model = CacheAgainstModel.TestCase
