"""Pools too small for everybody: small requests pass large ones, and pools that wait for each other come loose.

How long a request keeps its pages at decode is up to the tests here, not to the speed of the machine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from in_process import Cluster, cluster, until

from baton.client import FleetWorker
from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.decode.desk import FetchDesk
from baton.kv.local import AgentMessage, Fetched
from baton.testing.checkpoints import make_checkpoint

PAGE_SIZE = 16
PAGE_BYTES = KvLayout("m", "float32", 1, page_size=PAGE_SIZE, kv_heads=2, head_dim=16).page_bytes
POOL_BYTES = 2 * PAGE_BYTES * (RESERVED_PAGES + 100)
NEW_TOKENS = 4
TIMEOUT_S = 60.0


class Gate:
    """Between decode's agent and its worker: requests whose handoff is complete while it is shut do not run yet.

    They have their pages at decode, and have left prefill.
    """

    def __init__(self) -> None:
        self.shut = True
        self.held: list[Callable[[], None]] = []

    def open(self) -> None:
        """All that are held run, and so do those to come."""
        self.shut = False
        for run in self.held:
            run()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    original = FetchDesk.on_agent_message

    def on_agent_message(desk: FetchDesk, message: AgentMessage) -> None:
        if gate.shut and isinstance(message, Fetched):
            gate.held.append(partial(original, desk, message))
        else:
            original(desk, message)

    monkeypatch.setattr(FetchDesk, "on_agent_message", on_agent_message)
    return gate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ckpt") / "m", "llama", layers=2)


def ask(running: Cluster, pages: int) -> asyncio.Task:
    rng = random.Random(pages)
    prompt = [rng.randrange(10, 300) for _ in range(pages * PAGE_SIZE - NEW_TOKENS)]
    return asyncio.create_task(running.tokens(prompt, NEW_TOKENS))


async def fill_decode(running: Cluster, gate: Gate, pages: int) -> asyncio.Task:
    """Ask for something that keeps its pages at decode until the gate opens."""

    async def held() -> bool:
        return len(gate.held) == 1

    task = ask(running, pages)
    await until(held, f"{pages} pages are handed over", TIMEOUT_S)
    return task


async def strand_at_prefill(running: Cluster, pages: int) -> asyncio.Task:
    """Ask for something that is computed and has no room at decode."""

    async def stranded() -> bool:
        prefill, decode = await workers(running)
        lent = prefill.pages - RESERVED_PAGES - prefill.free_pages - prefill.evictable_pages
        return lent == pages and prefill.waiting == 0 and decode.waiting == 1

    task = ask(running, pages)
    await until(stranded, f"{pages} pages wait at prefill for room at decode", TIMEOUT_S)
    return task


async def workers(running: Cluster) -> tuple[FleetWorker, FleetWorker]:
    by_role = {worker.role: worker for worker in (await running.client.fleet()).workers}
    return by_role["prefill"], by_role["decode"]


async def test_a_small_request_passes_a_large_one_that_waits_for_pages(
    tmp_path: Path, checkpoint: Path, gate: Gate
) -> None:
    async with cluster(tmp_path, checkpoint, worker={"kv_memory_bytes": POOL_BYTES}) as running:
        first = await fill_decode(running, gate, 50)
        gate.shut = False  # the first one stays where it is
        large = await strand_at_prefill(running, 60)
        async with asyncio.timeout(TIMEOUT_S):
            _, of_small = await ask(running, 20)
        assert not first.done() and not large.done() and of_small.usage.attempts == 1
        gate.open()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(first, large)
        await running.quiet()


async def test_full_pools_that_wait_for_each_other_come_loose(tmp_path: Path, checkpoint: Path, gate: Gate) -> None:
    """A large prompt is computed and has no room at decode; a small one has its pages there and no room at prefill.

    Decode had room for the small one only, beside a request that it runs. Even when that one has ended, each of the two
    waits for the other's pages, and neither worker knows.
    """
    async with cluster(tmp_path, checkpoint, worker={"kv_memory_bytes": POOL_BYTES}) as running:
        first = await fill_decode(running, gate, 30)
        large = await strand_at_prefill(running, 88)
        small = ask(running, 20)

        async def both_at_decode() -> bool:
            return (await workers(running))[1].running == 2

        await until(both_at_decode, "decode has reserved pages for the small request", TIMEOUT_S)
        gate.open()
        async with asyncio.timeout(TIMEOUT_S):
            answers = await asyncio.gather(first, large, small)
        assert [event.usage.attempts for _, event in answers] == [1, 2, 1]  # the large one gave way
        await running.quiet()
