"""Pulls between two agents: a prefix that a worker has cached, lent for as long as somebody reads it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from agent_harness import LAYOUT, agent, attempts, expect_failed, expect_pulled, has_ucx, page_range, pair, worker

from baton.core.hashing import HASH_BYTES
from baton.core.layout import CacheGroup
from baton.kv.local import CancelFetch, Fetch, Hello, Released
from baton.kv_agent.fetches import what_is_wrong

PAGE_SIZE = LAYOUT.page_size


@pytest.mark.parametrize("transport", ["ucx", "tcp"])
async def test_a_cached_prefix_is_lent_and_read(tmp_path, transport):
    if transport == "ucx" and (reason := has_ucx()):
        pytest.skip(f"UCX cannot be used here: {reason}")
    async with pair(tmp_path, transport=transport) as (source, reader):
        attempt, own = next(attempts), page_range(20, 3)
        reader.pull(attempt, source, own, first_page=2)
        wanted = await source.lend(attempt, [9, 3, 30, 31, 7])
        assert wanted.first_page == 2 and len(wanted.block_hashes) == 3 * HASH_BYTES
        assert wanted.block_hashes.startswith(b"block-0000000002")
        expect_pulled(await reader.answer(attempt), 5 * PAGE_SIZE, 3)
        assert reader.holds(own, first_page=2)
        assert await source.answer(attempt) == Released(attempt, "released", "")


async def test_less_than_was_asked_for(tmp_path):
    """The index was behind: the source lends what it still holds, and the other pages stay untouched."""
    async with pair(tmp_path) as (source, reader):
        attempt, own = next(attempts), page_range(20, 6)
        reader.pull(attempt, source, own, first_page=1)
        await source.lend(attempt, page_range(40, 3))
        expect_pulled(await reader.answer(attempt), 3 * PAGE_SIZE, 2)
        assert reader.holds(own[:2], first_page=1)
        assert not reader.words[:, own[2:]].any()


async def test_nothing_is_held(tmp_path):
    async with pair(tmp_path) as (source, reader):
        attempt = next(attempts)
        reader.pull(attempt, source, page_range(20, 2))
        await source.answer(attempt)
        source.abort(attempt)
        expect_failed(await reader.answer(attempt), "not_held")
        assert source.unanswered(attempt)


async def test_the_reader_gives_up_while_the_worker_is_asked(tmp_path):
    async with pair(tmp_path) as (source, reader):
        attempt = next(attempts)
        reader.pull(attempt, source, page_range(20, 2))
        await source.answer(attempt)
        assert reader.link.send(CancelFetch(attempt, "client gone"))
        expect_failed(await reader.answer(attempt), "cancelled")
        source.hand_over(attempt, page_range(40, 2))
        assert (await source.answer(attempt)).outcome == "aborted"


async def test_a_worker_that_does_not_answer_costs_the_pulls_own_time(tmp_path):
    async with pair(tmp_path) as (source, reader):
        attempt = next(attempts)
        reader.pull(attempt, source, page_range(20, 2), timeout_s=0.1)
        expect_failed(await reader.answer(attempt), "timeout")
        await source.lend(attempt, page_range(40, 2))
        assert (await source.answer(attempt)).outcome == "aborted"


async def test_pages_that_are_wanted_back_end_the_pull(tmp_path):
    async with pair(tmp_path) as (source, reader):
        attempt = next(attempts)
        reader.pull(attempt, source, page_range(20, 2))
        await source.answer(attempt)
        source.offer(attempt, 2 * PAGE_SIZE)
        source.produce(attempt, range(1), page_range(40, 2))
        source.abort(attempt)
        expect_failed(await reader.answer(attempt), "cancelled")
        assert (await source.answer(attempt)).outcome == "aborted"


async def test_the_source_worker_dies_while_it_is_asked(tmp_path):
    async with agent(tmp_path / "s.sock"), agent(tmp_path / "r.sock"), worker(tmp_path / "r.sock", "reader") as reader:
        async with worker(tmp_path / "s.sock", "source") as source:
            attempt = next(attempts)
            reader.pull(attempt, source, page_range(20, 2))
            await source.answer(attempt)
        expect_failed(await reader.answer(attempt), "peer_lost")


@pytest.mark.parametrize("changes", [{"block_hashes": bytes(HASH_BYTES)}, {"tokens": 2 * PAGE_SIZE - 1}])
async def test_impossible_pulls_are_refused(tmp_path, changes):
    async with pair(tmp_path) as (source, reader):
        attempt = next(attempts)
        wanted = {"tokens": 2 * PAGE_SIZE, "block_hashes": bytes(2 * HASH_BYTES), **changes}
        reader.fetch(attempt, source, wanted.pop("tokens"), page_range(20, 2), **wanted)
        expect_failed(await reader.answer(attempt), "protocol")


WINDOW = CacheGroup("window", 2 * PAGE_SIZE, (1,))
STATE = CacheGroup("state", 2, (2,))
FULL = CacheGroup("full", 0, (0,))


@pytest.mark.parametrize(
    ("groups", "wanted", "lent", "held"),
    [((FULL, WINDOW, STATE), 8, 8, 2), ((FULL, WINDOW, STATE), 8, 5, 2), ((WINDOW,), 8, 7, 0), ((STATE,), 8, 3, 0)],
)
async def test_pages_of_several_kinds(tmp_path, groups, wanted, lent, held):
    """What comes is what one needs after as many blocks as the source can lend, in the reader's first pages."""
    layout = replace(LAYOUT, groups=groups)
    async with (
        agent(tmp_path / "s.sock"),
        agent(tmp_path / "r.sock"),
        worker(tmp_path / "s.sock", "source", layout) as source,
        worker(tmp_path / "r.sock", "reader", layout) as reader,
    ):
        attempt, first = next(attempts), held * layout.has_full
        due, come = (layout.pages_for(blocks * PAGE_SIZE) for blocks in (wanted, lent))
        own = page_range(20, due - first)
        hashes = bytes(HASH_BYTES * (wanted - held))
        reader.fetch(attempt, source, wanted * PAGE_SIZE, own, first, block_hashes=hashes)
        await source.answer(attempt)
        source.offer(attempt, lent * PAGE_SIZE)
        source.produce(attempt, range(layout.layers), page_range(40, come))
        source.commit(attempt, lent * PAGE_SIZE, b"")
        expect_pulled(await reader.answer(attempt), lent * PAGE_SIZE, come - first)
        assert reader.holds(own[: come - first], first)


@pytest.mark.parametrize(("hashes", "pages", "right"), [(6, 10, True), (5, 10, False), (6, 9, False), (7, 10, False)])
def test_names_and_pages_add_up(hashes, pages, right):
    """Eight blocks, two of which are held: six pages of full attention, two of a window, two of a state."""
    hello = Hello("w", 1, "prefill", replace(LAYOUT, groups=(FULL, WINDOW, STATE)), 100)
    ids = np.arange(20, 20 + pages, dtype="<u4")
    fetch = Fetch(next(attempts), "x:1", 1, "w", 2, 8 * PAGE_SIZE, 2, ids.tobytes(), 1.0, bytes(HASH_BYTES * hashes))
    assert (what_is_wrong(fetch, ids, hello) == "") is right
