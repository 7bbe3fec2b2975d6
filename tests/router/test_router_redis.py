"""A router that finds its workers and their prefixes through a real Redis, and does without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from router_system import System, until

from baton.client import BatonClient, GenerateRequest, SamplingParams
from baton.core.errors import ModelNotFound
from baton.core.hashing import block_hashes, root_hash
from baton.prefix.publisher import BlockPublisher
from baton.prefix.records import Namespace, WorkerRecord
from baton.prefix.redis_store import RedisStore
from baton.prefix.registry import WorkerRegistration
from baton.runtime.lifecycle import cancel_and_wait
from baton.testing.fake_worker import LAYOUT, FakeWorker
from baton.testing.redis_server import RedisServer, bundled_redis_server, find_redis_server
from baton.testing.toy_engine import toy_tokens

NAMESPACE = Namespace("toy", LAYOUT.model_revision, LAYOUT.fingerprint)
SERVERS = {str(path) for path in (bundled_redis_server(), find_redis_server()) if path}


@pytest.fixture(params=sorted(SERVERS))
def redis(request: pytest.FixtureRequest, tmp_path: Path) -> RedisServer:
    return RedisServer(Path(request.param), tmp_path / "r.sock")


class Publishing:
    """What a worker does with Redis."""

    def __init__(self, url: str, worker: FakeWorker, lease_s: float = 1.0) -> None:
        self.store = RedisStore.from_url(url)
        role = worker.description.role
        record = WorkerRecord(worker.worker_id, worker.epoch, role, worker.address, "toy", NAMESPACE)
        self.registration = WorkerRegistration(self.store, record, lease_s)
        self.blocks = BlockPublisher(self.store, NAMESPACE, worker.worker_id, worker.epoch, renew_s=0.1)
        self.tasks = [asyncio.create_task(self.registration.run()), asyncio.create_task(self.blocks.run())]

    async def stop(self) -> None:
        await cancel_and_wait(*self.tasks)
        await self.store.close()


@asynccontextmanager
async def registered(redis: RedisServer, *names: str) -> AsyncIterator[tuple[System, dict[str, Publishing]]]:
    """Workers, each with its registration and publisher, a router that knows only Redis, and a client."""
    system = System()
    published: dict[str, Publishing] = {}
    roles = {"p": "prefill", "d": "decode", "u": "unified"}
    redis.start()
    try:
        for name in names:
            worker = await system.add_worker(name, roles[name[0]])
            published[name] = Publishing(redis.url, worker)
        router = await system.add_router(workers=[], redis_url=redis.url)
        async with BatonClient([router.address]) as system.client:
            await until(lambda: len(router.fleet.workers) == len(names))
            yield system, published
    finally:
        for publishing in published.values():
            await publishing.stop()
        for router in system.routers:
            await router.stop(0.0)
        for worker in system.workers.values():
            await worker.kill()
        redis.kill()


async def complete(system: System, prompt: list[int], count: int = 4) -> str:
    answer = await system.client.complete(GenerateRequest("toy", prompt, SamplingParams(max_tokens=count)))
    assert answer.token_ids == toy_tokens(prompt, count)
    return answer.usage.prefill_worker


def blocks_of(prompt: list[int]) -> list[bytes]:
    return block_hashes(root_hash(LAYOUT.model_revision, LAYOUT.fingerprint), prompt, LAYOUT.page_size)


async def test_a_prefix_is_found_where_it_was_published(redis: RedisServer) -> None:
    prompt = list(range(1, 200))
    async with registered(redis, "p0", "p1", "d0") as (system, published):
        router = system.routers[0]
        for holder in ("p1", "p0"):
            published[holder].blocks.record(blocks_of(prompt), [])
            await until(lambda: router.servicer._index.blocks == 12)
            assert {await complete(system, prompt) for _ in range(4)} == {holder}
            published[holder].blocks.record([], blocks_of(prompt)[::-1])
            await until(lambda: router.servicer._index.blocks == 0)
        fleet = await system.client.fleet()
        assert fleet.redis_connected and len(fleet.workers) == 3


async def test_losing_redis_costs_no_request(redis: RedisServer) -> None:
    prompt = list(range(1, 200))
    async with registered(redis, "p0", "p1", "d0") as (system, published):
        router = system.routers[0]
        published["p1"].blocks.record(blocks_of(prompt), [])
        await until(lambda: router.servicer._index.blocks == 12)
        redis.kill()
        await until(lambda: not router._redis_connected())
        await asyncio.sleep(1.2)  # the leases are over
        assert {await complete(system, prompt) for _ in range(3)} == {"p1"}, "the mirror stays"
        assert not (await system.client.fleet()).redis_connected
        redis.start()  # with nothing in it
        await until(lambda: router._redis_connected() and router.servicer._index.blocks == 12)
        assert len(router.fleet.workers) == 3, "connected workers stay while they register again"
        assert await complete(system, prompt) == "p1"


async def test_a_worker_that_comes_back_elsewhere_is_found(redis: RedisServer) -> None:
    async with registered(redis, "u0") as (system, published):
        router = system.routers[0]
        await published["u0"].stop()
        await system["u0"].kill()
        await until(lambda: not router.fleet.workers)
        task = asyncio.create_task(complete(system, [1, 2]))
        await until(lambda: router.lifecycle.queued == 1)
        again = await system.add_worker("u0", "unified")
        published["u0"] = Publishing(redis.url, again)
        assert await task == "u0"
        (worker,) = router.fleet.workers
        assert (worker.info.epoch, worker.info.address) == (again.epoch, again.address)
        await until(lambda: len(router._links._links) == 1, 15.0)


async def test_an_unknown_model_is_told_as_soon_as_all_workers_are_known(redis: RedisServer) -> None:
    async with registered(redis, "u0") as (system, _):
        with pytest.raises(ModelNotFound):
            await system.client.complete(GenerateRequest("nope", [1]))


async def test_redis_away_from_the_start(redis: RedisServer) -> None:
    system = System()
    worker = await system.add_worker("u0", "unified")
    router = await system.add_router(redis_url=redis.url)
    async with BatonClient([router.address]) as system.client:
        await complete(system, [1])
        assert not (await system.client.fleet()).redis_connected
        redis.start()
        await until(router._redis_connected)
    await router.stop(0.0)
    await worker.kill()
    redis.kill()
