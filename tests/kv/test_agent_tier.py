"""An agent's tiers as its worker sees them: blocks move out, come back, go on to the disk, and leave for others."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_harness import LAYOUT, PAGES, AgentProcess, FakeWorker, agent, attempts, expect_failed, page_range, worker

from baton.core.errors import ConfigError
from baton.core.tiers import Tier
from baton.kv.local import MovedOut, MoveOut, Restore, Restored
from baton.kv.tier.disk import DiskTier
from baton.kv.tier.segment import HEADER_BYTES, RECORD_HEADER_BYTES
from baton.kv_agent import metrics, tier
from baton.kv_agent.settings import KvAgentSettings

BLOCK = LAYOUT.layers * LAYOUT.page_bytes
RECORD = HEADER_BYTES + RECORD_HEADER_BYTES + BLOCK


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def hashes(*numbers: int) -> bytes:
    return b"".join(map(name, numbers))


def ids(pages: list[int]) -> bytes:
    return np.array(pages, "<u4").tobytes()


def fill(source: FakeWorker, pages: list[int], salt: int) -> None:
    for layer in range(LAYOUT.layers):
        source.words[layer, pages] = salt * 1000 + layer * 100 + np.arange(len(pages))[:, None]


def holds(source: FakeWorker, pages: list[int], salt: int) -> bool:
    expected = salt * 1000 + np.arange(LAYOUT.layers)[:, None] * 100 + np.arange(len(pages))[None, :]
    return bool((source.words[:, pages] == expected[:, :, None]).all())


async def move_out(source: FakeWorker, batch: int, pages: list[int], *numbers: int) -> None:
    assert source.link.send(MoveOut(batch, ids(pages), hashes(*numbers)))
    assert await source.moved_out() == MovedOut(batch)


async def restore(own: FakeWorker, target: list[int], *numbers: int, first_page: int = 0) -> Any:
    attempt = next(attempts)
    assert own.link.send(Restore(attempt, first_page, ids(target), hashes(*numbers)))
    return await own.answer(attempt)


async def test_blocks_come_back_as_they_were(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=8 * BLOCK), worker(tmp_path / "a.sock", "w") as own:
        assert own.welcome.tier_blocks == 8
        pages = [5, 9, 30]
        fill(own, pages, salt=3)
        await move_out(own, 1, pages, 1, 2, 3)
        assert own.placed == dict.fromkeys([name(1), name(2), name(3)], Tier.HOST)
        fill(own, pages, salt=4)  # the pages are reused
        target = page_range(40, 3)
        answer = await restore(own, target, 1, 2, 3, first_page=2)
        assert isinstance(answer, Restored) and answer.tokens == 5 * LAYOUT.page_size
        (part,) = answer.parts
        assert (part.tier, part.bytes_read) == (Tier.HOST, 3 * BLOCK) and part.started_at <= part.done_at
        assert holds(own, target, salt=3)


async def test_a_block_on_its_way_out_comes_back(tmp_path):
    """The worker asks at once: what it asks for is still being copied."""
    async with agent(tmp_path / "a.sock", host_tier_bytes=8 * BLOCK), worker(tmp_path / "a.sock", "w") as own:
        for round_number in range(5):
            fill(own, [5, 9], salt=round_number)
            numbers, attempt = (2 * round_number, 2 * round_number + 1), next(attempts)
            assert own.link.send(MoveOut(round_number, ids([5, 9]), hashes(*numbers)))
            assert own.link.send(Restore(attempt, 0, ids([30, 31]), hashes(*numbers)))
            assert (await own.answer(attempt)).tokens == 2 * LAYOUT.page_size
            assert holds(own, [30, 31], salt=round_number)
            await own.moved_out()


async def test_what_is_not_there_any_more_ends_a_restore(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=3 * BLOCK), worker(tmp_path / "a.sock", "w") as own:
        fill(own, [5, 6, 7, 8], salt=3)
        await move_out(own, 1, [5, 6, 7], 1, 2, 3)
        await move_out(own, 2, [8], 4)
        assert set(own.placed) == {name(2), name(3), name(4)}, "the least recently used one left"
        target = page_range(40, 3)
        before = own.words[:, target].copy()
        expect_failed(await restore(own, target, 1, 2, 3), "not_held")
        assert (own.words[:, target] == before).all()
        assert (await restore(own, target, 2, 1, 3)).tokens == LAYOUT.page_size


async def test_without_a_tier_nothing_is_kept(tmp_path):
    async with agent(tmp_path / "a.sock"), worker(tmp_path / "a.sock", "w") as own:
        assert own.welcome.tier_blocks == 0
        await move_out(own, 7, [5, 6], 1, 2)
        assert own.placed == {}
        expect_failed(await restore(own, [9], 1), "not_held")


async def test_the_next_worker_finds_an_empty_memory(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=8 * BLOCK):
        async with worker(tmp_path / "a.sock", "w") as first:
            await move_out(first, 1, [5], 1)
        async with worker(tmp_path / "a.sock", "w") as second:
            expect_failed(await restore(second, [9], 1), "not_held")


async def test_pages_that_cannot_be_end_the_connection(tmp_path):
    async with agent(tmp_path / "a.sock", host_tier_bytes=8 * BLOCK), worker(tmp_path / "a.sock", "w") as own:
        for pages, names in (([1], hashes(1)), ([PAGES], hashes(1)), ([5, 6], hashes(1))):
            assert own.link.send(MoveOut(1, ids(pages), names))
            await own.connected(False)
            await own.connected()


class TestDisk:
    """Memory for 8 blocks, of which one slot is kept free; more on disk."""

    @pytest.fixture
    def options(self, tmp_path: Path) -> dict[str, Any]:
        return {
            "host_tier_bytes": 8 * BLOCK,
            "disk_tier_path": str(tmp_path / "disk"),
            "disk_tier_bytes": 100 * RECORD,
        }

    async def spilled(self, own: FakeWorker, count: int) -> None:
        """Move out blocks 0 to count - 1, block n with salt n, one by one; wait until all but 7 are on disk."""
        for number in range(count):
            fill(own, [5], salt=number)
            await move_out(own, number, [5], number)
            expected = number + 1 - 7

            def is_spilled(placed: dict[bytes, Tier], expected: int = expected) -> bool:
                return sum(tier is Tier.DISK for tier in placed.values()) >= expected

            await own.until_placed(is_spilled)

    async def test_what_memory_has_no_room_for_goes_on_to_the_disk(self, tmp_path, options):
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            await self.spilled(own, 20)
            tiers = [own.placed[name(number)] for number in range(20)]
            assert tiers == [Tier.DISK] * 13 + [Tier.HOST] * 7
            target = page_range(30, 4)
            answer = await restore(own, target, 15, 3, 4, 19)
            assert [(part.tier, part.bytes_read // BLOCK) for part in answer.parts] == [
                (Tier.HOST, 1), (Tier.DISK, 2), (Tier.HOST, 1),
            ]  # fmt: skip
            assert answer.tokens == 4 * LAYOUT.page_size
            for page, salt in zip(target, (15, 3, 4, 19), strict=True):
                assert holds(own, [page], salt)

    async def test_the_disk_outlives_the_agent(self, tmp_path, options):
        with AgentProcess(tmp_path / "a.sock", transport="tcp", **options) as process:
            async with worker(tmp_path / "a.sock", "w") as own:
                await self.spilled(own, 12)
                process.kill()
                await own.connected(False)
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "another") as own:
            await own.until_placed(lambda placed: len(placed) == 5)
            assert own.placed == dict.fromkeys(map(name, range(5)), Tier.DISK)
            target = page_range(30, 2)
            assert (await restore(own, target, 4, 2)).tokens == 2 * LAYOUT.page_size
            assert holds(own, target[:1], 4) and holds(own, target[1:], 2)
            await self.spilled(own, 20)

    async def test_what_a_full_disk_drops_is_told(self, tmp_path, options):
        options["disk_tier_bytes"] = 10 * RECORD
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            for number in range(40):
                fill(own, [5], salt=number)
                await move_out(own, number, [5], number)
                await own.until_placed(lambda placed, n=number: n < 7 or placed.get(name(n - 7)) is Tier.DISK)
            on_disk = [number for number in range(40) if own.placed.get(name(number)) is Tier.DISK]
            assert on_disk == list(range(33 - len(on_disk), 33)) and 5 <= len(on_disk) <= 10
            for number in on_disk:
                assert isinstance(await restore(own, [30], number), Restored) and holds(own, [30], number)

    async def test_a_block_that_rots_on_the_disk_is_computed(self, tmp_path, options):
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            await self.spilled(own, 9)
            (path, *_) = sorted((tmp_path / "disk").glob("*.kvseg"))
            with path.open("r+b") as file:
                file.seek(HEADER_BYTES + RECORD_HEADER_BYTES + 100)
                file.write(b"rot")
            expect_failed(await restore(own, [30], 0), "not_held")
            assert name(0) not in own.placed, "the worker is told"
            assert isinstance(await restore(own, [30], 1), Restored)

    async def test_a_disk_that_fails_costs_nothing_but_its_blocks(self, tmp_path, options, monkeypatch):
        """Writes fail: blocks on disk are gone, those in memory stay, and what moves out later is kept there."""
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            await self.spilled(own, 9)
            errors = metrics.disk_tier_errors._value.get()
            assert metrics.disk_tier_up._value.get() == 1

            def full(*_: object) -> int:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(os, "pwritev", full)
            fill(own, [5], salt=9)
            await move_out(own, 9, [5], 9)
            await own.until_placed(lambda placed: Tier.DISK not in placed.values())
            assert metrics.disk_tier_up._value.get() == 0 and metrics.disk_tier_errors._value.get() == errors + 1
            expect_failed(await restore(own, [30], 0), "not_held")
            for number in range(2, 10):
                assert isinstance(await restore(own, [30], number), Restored) and holds(own, [30], number)
            for number in range(10, 20):
                fill(own, [5], salt=number)
                await move_out(own, number, [5], number)
            assert set(own.placed) == set(map(name, range(12, 20))), "all of memory is used"
            monkeypatch.undo()
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            await own.until_placed(lambda placed: len(placed) == 2)

    async def test_a_failing_read_turns_the_disk_off(self, tmp_path, options, monkeypatch):
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            await self.spilled(own, 9)

            def broken(*_: object) -> int:
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(os, "preadv", broken)
            assert (await restore(own, [30, 31], 8, 0)).tokens == LAYOUT.page_size
            assert Tier.DISK not in own.placed.values() and holds(own, [30], 8)

    async def test_a_read_that_hangs_is_computed_and_never_written(self, tmp_path, options, monkeypatch):
        """The pages of a restore that was given up belong to others before the disk answers."""
        monkeypatch.setattr(tier, "DISK_STALL_S", 0.1)
        gate, preadv, reading = threading.Event(), os.preadv, []
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            await self.spilled(own, 9)

            def slow(*given: Any) -> int:
                reading.append(threading.current_thread())
                gate.wait()
                return preadv(*given)

            monkeypatch.setattr(os, "preadv", slow)
            assert (await restore(own, [30, 31, 32], 8, 0, 1)).tokens == LAYOUT.page_size
            assert metrics.disk_tier_up._value.get() == 0 and Tier.DISK not in own.placed.values()
            fill(own, [31, 32], salt=99)
            assert reading and reading[0].is_alive()
            gate.set()
            await move_out(own, 9, [5], 9)
        reading[0].join(10)
        assert holds(own, [31, 32], salt=99)

    async def test_an_agent_ends_while_a_write_hangs(self, tmp_path, options, monkeypatch):
        monkeypatch.setattr(tier, "DISK_STALL_S", 0.1)
        with _Hanging(monkeypatch):
            async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
                for number in range(9):
                    await move_out(own, number, [5], number)
                await own.until_placed(lambda placed: len(placed) == 8)

    async def test_memory_does_not_wait_for_a_disk_that_hangs(self, tmp_path, options, monkeypatch):
        """Blocks that are on their way to the disk stay readable, others take what room there is, or are lost."""
        async with agent(tmp_path / "a.sock", **options), worker(tmp_path / "a.sock", "w") as own:
            await self.spilled(own, 7)
            with _Hanging(monkeypatch) as disk:
                for number in range(7, 20):
                    fill(own, [5], salt=number)
                    await move_out(own, number, [5], number)
                assert name(19) in own.placed and len(own.placed) == 8
                for number in (0, 19):
                    assert isinstance(await restore(own, [30], number), Restored) and holds(own, [30], number)
                disk.go_on()
                await own.until_placed(lambda placed: placed.get(name(0)) is Tier.DISK)

    async def test_settings_that_do_not_fit_are_refused(self, tmp_path):
        for options in (
            {"disk_tier_path": "/somewhere"},
            {"disk_tier_bytes": 1 << 20, "host_tier_bytes": 1 << 20},
            {"disk_tier_path": "/somewhere", "disk_tier_bytes": 1 << 20},
        ):
            with pytest.raises(ConfigError, match="disk tier"):
                KvAgentSettings(socket="s", **options).tier_limits()


class _Hanging:
    """The disk's writes wait until `go_on`, or the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gate = threading.Event()
        store = DiskTier.store

        def gated(disk: DiskTier, blocks: Any) -> Any:
            self._gate.wait()
            return store(disk, blocks)

        monkeypatch.setattr(DiskTier, "store", gated)

    def go_on(self) -> None:
        self._gate.set()

    def __enter__(self) -> _Hanging:
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.set()
