"""Alarm and mailbox: what rings when, who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib

from baton.gateway.mailbox import Alarm, Mailbox


class Rings:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.at: list[float] = []
        self.rang = asyncio.Event()

    def __call__(self) -> None:
        self.at.append(self.loop.time())
        self.rang.set()


async def test_an_alarm_rings_when_it_was_last_set_to() -> None:
    rings = Rings()
    alarm = Alarm(rings)
    alarm.set(0.02)
    due = rings.loop.time() + 0.06
    alarm.set(0.06)
    await rings.rang.wait()
    assert rings.at[0] >= due - 0.001
    rings.rang.clear()
    alarm.set(50)
    alarm.set(0.02)  # earlier than the timer that runs
    async with asyncio.timeout(5):
        await rings.rang.wait()
    await asyncio.sleep(0.03)
    assert len(rings.at) == 2  # each once
    alarm.close()


async def test_an_alarm_that_is_cleared_or_closed_is_silent() -> None:
    rings = Rings()
    cleared, closed = Alarm(rings), Alarm(rings)
    cleared.set(0.01)
    cleared.clear()
    closed.set(0.01)
    closed.close()
    await asyncio.sleep(0.05)
    assert rings.at == []
    cleared.set(0.01)
    async with asyncio.timeout(5):
        await rings.rang.wait()


async def test_a_reader_takes_all_that_is_there_or_nothing_in_time() -> None:
    box: Mailbox[int] = Mailbox(10)
    assert await box.take(0.01) == []
    await box.put(1)
    await box.put(2)
    assert await box.take(50) == [1, 2]
    waiting = asyncio.create_task(box.take(50))
    await asyncio.sleep(0)
    await box.put(3)
    await box.put(4)  # before the reader has run
    assert await waiting == [3, 4]
    box.close()


async def test_writers_wait_while_it_is_full() -> None:
    box: Mailbox[int] = Mailbox(2)
    writers = [asyncio.create_task(box.put(number)) for number in range(5)]
    await asyncio.sleep(0.01)
    assert sum(writer.done() for writer in writers) == 2
    seen: list[int] = []
    async with asyncio.timeout(5):
        while len(seen) < 5:
            seen += await box.take(1)
    assert seen == [0, 1, 2, 3, 4]
    box.close()


async def test_a_reader_that_is_cancelled_leaves_the_items() -> None:
    box: Mailbox[int] = Mailbox(2)
    waiting = asyncio.create_task(box.take(50))
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await box.put(1)
    assert await box.take(50) == [1]
    box.close()
