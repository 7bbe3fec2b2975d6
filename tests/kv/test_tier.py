"""The host tier against a model that is nothing but a list: what is kept, what comes back, what has to leave."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from baton.core.errors import ConfigError
from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.kv.memory import PoolMemory
from baton.kv.tier.host import HostTier

LAYOUT = KvLayout("tiny", "float16", layers=3, page_size=2, kv_heads=1, head_dim=4)
BLOCK = LAYOUT.layers * LAYOUT.page_bytes
PAGES = RESERVED_PAGES + 12


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def fill(pool: PoolMemory, page: int, number: int) -> None:
    for layer in range(LAYOUT.layers):
        pool.page(layer, page)[:] = bytes([number % 251, layer]) * (LAYOUT.page_bytes // 2)


def holds(pool: PoolMemory, page: int, number: int) -> bool:
    layers = range(LAYOUT.layers)
    expected = [bytes([number % 251, layer]) * (LAYOUT.page_bytes // 2) for layer in layers]
    return [bytes(pool.page(layer, page)) for layer in layers] == expected


@pytest.fixture
def pool():
    memory = PoolMemory.create(LAYOUT, PAGES)
    yield memory
    memory.close()


class Model:
    """Least recently used first, by brute force."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: list[int] = []

    def use(self, number: int) -> None:
        self.kept.remove(number)
        self.kept.append(number)

    def store(self, numbers: list[int]) -> list[int]:
        dropped = []
        for number in numbers:
            if number in self.kept:
                self.use(number)
                continue
            if len(self.kept) == self.capacity:
                dropped.append(self.kept.pop(0))
            self.kept.append(number)
        return [number for number in dropped if number not in self.kept]

    def load(self, numbers: list[int]) -> int:
        loaded = next((at for at, number in enumerate(numbers) if number not in self.kept), len(numbers))
        for number in reversed(numbers[:loaded]):
            self.use(number)
        return loaded


BATCHES = st.tuples(st.booleans(), st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(capacity=st.integers(1, 9), batches=st.lists(BATCHES, max_size=40), slack=st.integers(0, BLOCK - 1))
def test_it_does_what_the_model_does(capacity: int, batches: list[tuple[bool, list[int]]], slack: int) -> None:
    pool = PoolMemory.create(LAYOUT, PAGES)
    tier, model = HostTier(pool, capacity * BLOCK + slack), Model(capacity)
    for is_store, numbers in batches:
        pages = list(range(RESERVED_PAGES, RESERVED_PAGES + len(numbers)))
        blocks = [(name(number), page) for number, page in zip(numbers, pages, strict=True)]
        if is_store:
            for number, page in zip(numbers, pages, strict=True):
                fill(pool, page, number)
            assert tier.store(blocks) == [name(number) for number in model.store(numbers)]
        else:
            for page in pages:
                fill(pool, page, 250)
            loaded = model.load(numbers)
            assert tier.load(blocks) == loaded
            came = [holds(pool, page, number) for number, page in zip(numbers, pages, strict=True)]
            assert came == [True] * loaded + [False] * (len(numbers) - loaded)
            assert all(holds(pool, page, 250) for page in pages[loaded:]), "only what came was written"
        assert tier.hashes == [name(number) for number in model.kept]
        assert len(tier) <= capacity
    tier.close()
    pool.close()


def test_a_block_that_changed_does_not_come_back(pool):
    tier = HostTier(pool, 4 * BLOCK)
    for number, page in ((1, 2), (2, 3), (3, 4)):
        fill(pool, page, number)
    tier.store([(name(1), 2), (name(2), 3), (name(3), 4)])
    tier._slots.reshape(-1)[BLOCK + 7] ^= 1
    assert tier.load([(name(1), 5), (name(2), 6), (name(3), 7)]) == 1
    assert name(2) not in tier and name(3) in tier
    fill(pool, 3, 2)
    assert tier.store([(name(2), 3)]) == [], "its slot is free again"
    assert tier.load([(name(2), 6)]) == 1 and holds(pool, 6, 2)


def test_a_tier_without_room_for_a_block_is_refused(pool):
    with pytest.raises(ConfigError, match="holds nothing"):
        HostTier(pool, BLOCK - 1)
    with pytest.raises(ConfigError):
        HostTier(pool, 1 << 62)


def test_it_takes_no_memory_before_it_is_used(pool):
    tier = HostTier(pool, 1 << 34)
    assert tier.capacity == (1 << 34) // BLOCK
    tier.close()
    tier.close()


def test_leaving_blocks_can_be_read_until_they_have_left(pool):
    tier = HostTier(pool, 8 * BLOCK)
    blocks = [(name(number), 2 + number) for number in range(8)]
    for number, (_, page) in enumerate(blocks):
        fill(pool, page, number)
    for block in blocks:
        tier.store([block])
    assert tier.leave(0) == []
    (leaving,) = tier.leave(5)
    assert leaving.block_hash == name(0), "the oldest, and room for one is enough: so many came at once"
    assert tier.leave(5) == [], "what is leaving counts"
    tier.drop(name(0))
    assert tier.load([(name(0), 12)]) == 1 and holds(pool, 12, 0), "it is here until it has left"
    layers = [bytes(pool.page(layer, 12)) for layer in range(LAYOUT.layers)]
    assert bytes(leaving.body) == b"".join(layers) and leaving.checksum == xxh3_64_intdigest(leaving.body)
    tier.stay([name(0), name(5)])
    (leaving,) = tier.leave(5)
    assert leaving.block_hash == name(1), "the first was used since"
    tier.stay([name(1)])
    tier.drop(name(1))
    tier.store(blocks[1:2])
    (leaving,) = tier.leave(5)
    assert leaving.block_hash == name(2)
    tier.left([name(2), name(5)])
    assert name(2) not in tier and name(5) in tier
    assert tier.store([(name(9), 12)]) == [], "its slot is free"


@pytest.mark.parametrize(("at_once", "leaving"), [(1, 1), (3, 3), (7, 4)])
def test_room_is_made_for_as_many_as_come_at_once(pool, at_once, leaving):
    tier = HostTier(pool, 8 * BLOCK)
    blocks = [(name(number), 2) for number in range(8)]
    tier.store(blocks[:at_once])
    for block in blocks[at_once:]:
        tier.store([block])
    assert [block.block_hash for block in tier.leave(9)] == [name(number) for number in range(leaving)]


def test_blocks_without_room_are_lost_rather_than_wait(pool):
    tier = HostTier(pool, 2 * BLOCK)
    fill(pool, 2, 1)
    tier.store([(name(1), 2), (name(2), 2)])
    (leaving,) = tier.leave(1)
    assert tier.store([(name(3), 2)]) == [name(2)], "the oldest one that is not leaving"
    tier.drop(name(3))
    assert tier.leave(5) == [] and len(tier) == 1
    assert tier.store([(name(3), 2)]) == []
    fill(pool, 2, 9)
    assert bytes(leaving.body[:2]) == bytes([1, 0]), "nobody has written into its slot"
