"""Pools too small for everybody: small requests pass large ones, and pools that wait for each other come loose."""

from __future__ import annotations

import asyncio
import random

import pytest
from in_process import Cluster, cluster, until

from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.testing.checkpoints import make_checkpoint

PAGE_SIZE = 16
PAGE_BYTES = KvLayout("m", "float32", 1, page_size=PAGE_SIZE, kv_heads=2, head_dim=16).page_bytes
POOL_BYTES = 2 * PAGE_BYTES * (RESERVED_PAGES + 100)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("ckpt") / "m", "llama", layers=2)


def prompt(pages: int) -> list[int]:
    rng = random.Random(pages)
    return [rng.randrange(10, 300) for _ in range(pages * PAGE_SIZE - 4)]


async def begin(running: Cluster, pages: int, max_tokens: int) -> asyncio.Task:
    """Ask, and wait until decode has been told of it."""
    task = asyncio.create_task(running.tokens(prompt(pages), max_tokens))

    async def known() -> bool:
        decode = next(w for w in (await running.client.fleet()).workers if w.role == "decode")
        return decode.running + decode.waiting >= before + 1

    fleet = (await running.client.fleet()).workers
    before = next(w.running + w.waiting for w in fleet if w.role == "decode")
    await until(known, f"decode knows of the request of {pages} pages")
    return task


async def test_a_small_request_passes_a_large_one_that_waits_for_pages(tmp_path, checkpoint):
    async with cluster(tmp_path, checkpoint, worker={"kv_memory_bytes": POOL_BYTES}) as running:
        first = await begin(running, 50, 400)
        large = await begin(running, 60, 4)
        _, of_small = await (await begin(running, 20, 4))
        assert not first.done() and not large.done() and of_small.usage.attempts == 1
        async with asyncio.timeout(30):
            await asyncio.gather(first, large)
        await running.quiet()


async def test_full_pools_that_wait_for_each_other_come_loose(tmp_path, checkpoint):
    """A large prompt is computed and has no room at decode; a small one has its pages there and no room at prefill.

    Decode had room for the small one only, beside a request that it ran; when that one has ended, each of the two waits
    for the other's pages, and neither worker knows.
    """
    async with cluster(tmp_path, checkpoint, worker={"kv_memory_bytes": POOL_BYTES}) as running:
        first = await begin(running, 30, 150)
        large = await begin(running, 88, 4)
        small = await begin(running, 20, 4)
        async with asyncio.timeout(20):
            answers = await asyncio.gather(first, large, small)
        assert [event.usage.attempts for _, event in answers] == [1, 2, 1]  # the large one gave way
        await running.quiet()
