"""An agent's host tier as its worker sees it: blocks move out, come back, and leave for others."""

from __future__ import annotations

import numpy as np
from agent_harness import LAYOUT, PAGES, FakeWorker, agent, attempts, expect_failed, page_range, worker

from baton.kv.local import Fetched, MovedOut, MoveOut, Restore

BLOCK = LAYOUT.layers * LAYOUT.page_bytes


def hashes(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(16, "little") for number in numbers)


def ids(pages: list[int]) -> bytes:
    return np.array(pages, "<u4").tobytes()


def fill(source: FakeWorker, pages: list[int], salt: int) -> None:
    for layer in range(LAYOUT.layers):
        source.words[layer, pages] = salt * 1000 + layer * 100 + np.arange(len(pages))[:, None]


def holds(source: FakeWorker, pages: list[int], salt: int) -> bool:
    expected = salt * 1000 + np.arange(LAYOUT.layers)[:, None] * 100 + np.arange(len(pages))[None, :]
    return bool((source.words[:, pages] == expected[:, :, None]).all())


async def move_out(source: FakeWorker, batch: int, pages: list[int], *numbers: int) -> MovedOut:
    assert source.link.send(MoveOut(batch, ids(pages), hashes(*numbers)))
    return await source.moved_out()


async def test_blocks_come_back_as_they_were(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=8 * BLOCK), worker(tmp_path / "a.sock", "w") as own:
        assert own.welcome.tier_blocks == 8
        pages = [5, 9, 30]
        fill(own, pages, salt=3)
        assert await move_out(own, 1, pages, 1, 2, 3) == MovedOut(1, b"")
        fill(own, pages, salt=4)  # the pages are reused
        attempt, target = next(attempts), page_range(40, 3)
        assert own.link.send(Restore(attempt, 2, ids(target), hashes(1, 2, 3)))
        answer = await own.answer(attempt)
        assert isinstance(answer, Fetched)
        assert (answer.tokens, answer.bytes_read) == (5 * LAYOUT.page_size, 3 * BLOCK)
        assert holds(own, target, salt=3)


async def test_what_is_not_there_any_more_ends_a_restore(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=3 * BLOCK), worker(tmp_path / "a.sock", "w") as own:
        fill(own, [5, 6, 7, 8], salt=3)
        assert (await move_out(own, 1, [5, 6, 7], 1, 2, 3)).dropped == b""
        assert (await move_out(own, 2, [8], 4)).dropped == hashes(1), "the least recently used one left"
        attempt, target = next(attempts), page_range(40, 3)
        before = own.words[:, target].copy()
        assert own.link.send(Restore(attempt, 0, ids(target), hashes(1, 2, 3)))
        expect_failed(await own.answer(attempt), "not_held")
        assert (own.words[:, target] == before).all()
        again = next(attempts)
        assert own.link.send(Restore(again, 0, ids(target), hashes(2, 1, 3)))
        assert (await own.answer(again)).tokens == LAYOUT.page_size


async def test_without_a_tier_nothing_is_kept(tmp_path):
    async with agent(tmp_path / "a.sock"), worker(tmp_path / "a.sock", "w") as own:
        assert own.welcome.tier_blocks == 0
        assert (await move_out(own, 7, [5, 6], 1, 2)) == MovedOut(7, hashes(1, 2))
        attempt = next(attempts)
        assert own.link.send(Restore(attempt, 0, ids([9]), hashes(1)))
        expect_failed(await own.answer(attempt), "not_held")


async def test_the_next_worker_finds_an_empty_tier(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=8 * BLOCK):
        async with worker(tmp_path / "a.sock", "w") as first:
            await move_out(first, 1, [5], 1)
        async with worker(tmp_path / "a.sock", "w") as second:
            attempt = next(attempts)
            assert second.link.send(Restore(attempt, 0, ids([9]), hashes(1)))
            expect_failed(await second.answer(attempt), "not_held")


async def test_pages_that_cannot_be_end_the_connection(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=8 * BLOCK), worker(tmp_path / "a.sock", "w") as own:
        for pages, names in (([1], hashes(1)), ([PAGES], hashes(1)), ([5, 6], hashes(1))):
            assert own.link.send(MoveOut(1, ids(pages), names))
            await own.connected(False)
            await own.connected()
