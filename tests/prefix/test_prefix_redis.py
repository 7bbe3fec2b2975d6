"""Scripts, registry, publisher and sync over real servers."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefix_support import drained, run_task, until
from redis.exceptions import RedisError

from baton.core.errors import ConfigError, StoreUnavailable
from baton.core.hashing import block_hashes
from baton.core.tiers import Tier
from baton.prefix.mirror import PrefixMirror
from baton.prefix.publisher import BlockPublisher
from baton.prefix.records import (
    Applied,
    BlockBatch,
    BlockEvent,
    IndexSnapshot,
    Namespace,
    WorkerBlocks,
    WorkerRecord,
)
from baton.prefix.redis_store import RedisStore
from baton.prefix.registry import RegistryWatch, WorkerRegistration
from baton.prefix.sync import IndexSync
from baton.testing.redis_server import RedisServer

LEASE_S = 60.0


def hashes(count: int, seed: int = 0) -> list[bytes]:
    return block_hashes(f"root{seed}".encode(), list(range(count)), 1)


def batch(seq: int, stored: list[bytes], removed: list[bytes] = [], epoch: int = 1, **options: Any) -> BlockBatch:  # noqa: B006
    return BlockBatch("w", epoch, seq, b"".join(stored), b"".join(removed), **options)


async def stored_blocks(store: RedisStore, namespace: Namespace, worker: str = "w") -> set[bytes]:
    known = (await store.snapshot(namespace)).workers.get(worker)
    return known.blocks | known.host | known.disk if known else set()


class TestApply:
    async def test_numbers_are_checked(self, store: RedisStore, namespace: Namespace) -> None:
        one, two, three = hashes(3)
        assert await store.apply(namespace, batch(2, [one]), LEASE_S) is Applied.GAP
        assert await store.apply(namespace, batch(1, [one]), LEASE_S) is Applied.OK
        assert await store.apply(namespace, batch(1, [one]), LEASE_S) is Applied.OK, "sent again: accepted, not applied"
        assert await store.apply(namespace, batch(3, [two]), LEASE_S) is Applied.GAP
        assert await store.apply(namespace, batch(2, [two], [one]), LEASE_S) is Applied.OK
        assert await store.apply(namespace, batch(7, [three], reset=True), LEASE_S) is Applied.OK
        assert await stored_blocks(store, namespace) == {three}
        events, _ = await store.events(namespace, "0-0", 0.01)
        assert [event.seq for event in events] == [1, 2, 7]

    async def test_a_block_is_in_one_tier(self, store: RedisStore, namespace: Namespace) -> None:
        one, two, three, four = hashes(4)
        await store.apply(namespace, batch(1, [one, two], host=three, disk=four), LEASE_S)
        assert await store.touch(namespace, "w", 1, LEASE_S) == (1, 4)
        known = WorkerBlocks(1, 1, {one, two}, {three}, {four})
        assert (await store.snapshot(namespace)).workers == {"w": known}
        await store.apply(namespace, batch(2, [three], [one], host=four, disk=two), LEASE_S)
        assert (await store.snapshot(namespace)).workers == {"w": WorkerBlocks(1, 2, {three}, {four}, {two})}
        mirror = PrefixMirror()
        for event in (await store.events(namespace, "0-0", 0.01))[0]:
            assert mirror.apply(event)
        assert [mirror.reach("w", [block]) for block in (one, two, three, four)] == [
            [0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1],
        ]  # fmt: skip
        await store.apply(namespace, batch(1, [one], epoch=2), LEASE_S)
        assert (await store.snapshot(namespace)).workers == {"w": WorkerBlocks(2, 1, {one})}
        assert len(await store._redis.keys(f"*{namespace.key}*blocks*")) == 1, "nothing is left of the old epoch"
        await store.apply(namespace, batch(2, [], epoch=2, host=two), LEASE_S)
        await store.forget(namespace, "w", 2)
        assert await store._redis.keys(f"*{namespace.key}*blocks*") == []

    async def test_old_epochs_are_refused_and_a_new_one_starts_empty(
        self, store: RedisStore, namespace: Namespace
    ) -> None:
        one, two = hashes(2)
        newer = 1_700_000_000_000_000_001  # differs from its neighbour only beyond the precision of a double
        assert await store.apply(namespace, batch(1, [one], epoch=newer - 1), LEASE_S) is Applied.OK
        assert await store.apply(namespace, batch(1, [two], epoch=newer), LEASE_S) is Applied.OK
        assert await store.apply(namespace, batch(2, [one], epoch=newer - 1), LEASE_S) is Applied.STALE
        assert await stored_blocks(store, namespace) == {two}

    async def test_large_batches(self, store: RedisStore, namespace: Namespace) -> None:
        many = hashes(20_001)
        assert await store.apply(namespace, batch(1, many), LEASE_S) is Applied.OK
        assert await store.apply(namespace, batch(2, [], many[1:]), LEASE_S) is Applied.OK
        assert await stored_blocks(store, namespace) == {many[0]}

    async def test_scripts_survive_a_flush_of_the_script_cache(self, store: RedisStore, namespace: Namespace) -> None:
        assert await store.apply(namespace, batch(1, hashes(1)), LEASE_S) is Applied.OK
        await store._redis.script_flush()
        assert await store.apply(namespace, batch(2, hashes(2)), LEASE_S) is Applied.OK

    async def test_blocks_expire_with_their_lease(self, store: RedisStore, namespace: Namespace) -> None:
        await store.apply(namespace, batch(1, hashes(3)), 0.05)

        async def gone() -> bool:
            return await stored_blocks(store, namespace) == set()

        await until(gone)
        assert await store.touch(namespace, "w", 1, LEASE_S) is None

    async def test_forget_leaves_a_newer_epoch_alone(self, store: RedisStore, namespace: Namespace) -> None:
        await store.apply(namespace, batch(1, hashes(1), epoch=5), LEASE_S)
        await store.forget(namespace, "w", 4)
        assert await store.touch(namespace, "w", 5, LEASE_S) == (1, 1)
        await store.forget(namespace, "w", 5)
        assert (await store.snapshot(namespace)).workers == {}


def record(worker_id: str = "w", epoch: int = 1, namespace: Namespace | None = None) -> WorkerRecord:
    return WorkerRecord(worker_id, epoch, "decode", "127.0.0.1:1", "tiny", namespace or Namespace("tiny", "r", "f"))


class TestRegistry:
    async def test_a_newer_epoch_wins(self, store: RedisStore) -> None:
        assert await store.register(record(epoch=2), LEASE_S)
        assert not await store.register(record(epoch=1), LEASE_S)
        assert await store.register(record(epoch=3), LEASE_S)
        await store.deregister("w", 2)
        assert await store.workers() == [record(epoch=3)]
        await store.deregister("w", 3)
        assert await store.workers() == []

    async def test_an_expired_worker_leaves_with_its_blocks(self, store: RedisStore, namespace: Namespace) -> None:
        await store.apply(namespace, batch(1, hashes(3)), LEASE_S)
        await store.register(record(namespace=namespace), 0.03)

        async def gone() -> bool:
            return await store.workers() == []

        await until(gone)
        assert await stored_blocks(store, namespace) == set()

    async def test_heartbeats_and_watch(self, store: RedisStore) -> None:
        seen: list[list[WorkerRecord]] = []
        watch = RegistryWatch(store, seen.append, sleep=lambda _: asyncio.sleep(0.01))
        registration = WorkerRegistration(store, record(), 0.2)
        async with run_task(watch.run()):
            await until(lambda: seen == [[]])
            async with run_task(registration.run()):
                await until(lambda: seen[-1] == [record()])
                await asyncio.sleep(0.5)
                assert seen == [[], [record()]], "renewals change nothing"
            await registration.deregister()
            await until(lambda: seen[-1] == [])


class TestPublisher:
    async def test_index_and_mirror_follow_the_engine(self, store: RedisStore, namespace: Namespace) -> None:
        """Random stores and evictions, a restart of the worker, scripts lost, blocks evicted: all end up equal."""
        choose = random.Random(7)
        mirror = PrefixMirror()
        sync = IndexSync(store, namespace, mirror, wait_s=0.05)
        chain = hashes(400)
        async with run_task(sync.run()):
            for epoch in (1, 2):
                publisher = BlockPublisher(store, namespace, "w", epoch, renew_s=0.1)
                length = 0
                async with run_task(publisher.run()):
                    for step in range(60):
                        new = choose.randrange(len(chain) + 1)
                        tiered = [(block, choose.choice([Tier.HOST, Tier.DISK])) for block in chain[:new:7]]
                        publisher.record(chain[length:new], chain[new:length][::-1], tiered)
                        length = new
                        if step % 20 == 10:
                            await asyncio.sleep(0.05)
                            await store._redis.delete(*await store._redis.keys("*" + namespace.key + "*blocks*"))
                        await asyncio.sleep(0)
                    expected = set(chain[:length])
                    tiers = {block: tier for block, tier in tiered if block in expected}
                    await until(partial(drained, publisher))

                    async def equal(expected: set[bytes] = expected) -> bool:
                        return await stored_blocks(store, namespace) == expected

                    await until(equal)
                    await until(lambda: mirror.match(chain).get("w", 0) == length and mirror.blocks == length)  # noqa: B023
                    assert mirror.epoch("w") == epoch
                    known = (await store.snapshot(namespace)).workers["w"]
                    assert {**dict.fromkeys(known.host, Tier.HOST), **dict.fromkeys(known.disk, Tier.DISK)} == tiers
            await publisher.withdraw()
            await until(lambda: mirror.blocks == 0)

    async def test_an_old_epoch_stops_publishing(self, store: RedisStore, namespace: Namespace) -> None:
        await store.apply(namespace, batch(1, hashes(1), epoch=2), LEASE_S)
        publisher = BlockPublisher(store, namespace, "w", 1)
        publisher.record(hashes(3), [])
        async with asyncio.timeout(5):
            await publisher.run()
        assert await stored_blocks(store, namespace) == set(hashes(1))

    async def test_recording_from_another_thread(self, store: RedisStore, namespace: Namespace) -> None:
        chain = hashes(3000)
        publisher = BlockPublisher(store, namespace, "w", 1)

        def engine() -> None:
            for at in range(0, len(chain), 10):
                publisher.record(chain[at : at + 10], [])

        async with run_task(publisher.run()):
            await asyncio.to_thread(engine)

            async def equal() -> bool:
                return await stored_blocks(store, namespace) == set(chain)

            await until(equal)


async def test_missing_events_lead_to_a_new_snapshot() -> None:
    """The stream was trimmed under a slow reader: told by the numbers, mended by a snapshot."""
    one, two, three = hashes(3)

    class TrimmedStream:
        snapshots = iter([IndexSnapshot("1-0", {"w": WorkerBlocks(1, 1, {one})}),
                          IndexSnapshot("9-0", {"w": WorkerBlocks(1, 4, {two, three})})])  # fmt: skip

        async def snapshot(self, namespace: Namespace) -> IndexSnapshot:
            return next(self.snapshots)

        async def events(self, namespace: Namespace, position: str, block_s: float) -> tuple[list[BlockEvent], str]:
            if position == "9-0":
                await asyncio.sleep(3600)
            return [batch(1, [one]), batch(2, [two]), batch(4, [three])], "4-0"

    mirror = PrefixMirror()
    sync = IndexSync(TrimmedStream(), Namespace("m", "r", "f"), mirror)
    async with run_task(sync.run()):
        await until(lambda: sync.snapshots == 2)
    assert mirror.match([two, three]) == {"w": 2}
    assert mirror.match([one]) == {}


class TestRedisGone:
    async def test_everybody_goes_on_and_recovers(self, tmp_path: Path, any_redis_binary: Path) -> None:
        """Redis dies (and forgets everything): the mirror stays, nothing raises; when it is back, all is published."""
        namespace = Namespace("tiny", "r", "f")
        chain = hashes(2000)
        server = RedisServer(any_redis_binary, tmp_path / "redis.sock")
        store = RedisStore.from_url(server.url)
        publisher = BlockPublisher(store, namespace, "w", 1, renew_s=0.2)
        mirror = PrefixMirror()
        sync = IndexSync(store, namespace, mirror, wait_s=0.1)
        seen: list[list[WorkerRecord]] = []
        watch = RegistryWatch(store, seen.append)
        registration = WorkerRegistration(store, record(namespace=namespace), 0.5)
        publisher.record(chain[:100], [])
        try:
            async with (
                run_task(publisher.run()), run_task(sync.run()), run_task(watch.run()), run_task(registration.run())
            ):  # fmt: skip
                await asyncio.sleep(0.05)
                assert not publisher.connected and not sync.connected
                server.start()
                await until(lambda: mirror.match(chain) == {"w": 100} and seen[-1:] == [[record(namespace=namespace)]])
                server.kill()
                await until(lambda: not sync.connected and not publisher.connected and not watch.connected)
                assert mirror.match(chain) == {"w": 100}, "the last view stands"
                assert seen[-1] == [record(namespace=namespace)]
                publisher.record(chain[100:], [])
                publisher.record([], chain[:1500:-1])
                server.start()
                await until(lambda: mirror.match(chain) == {"w": 1501} and watch.connected)
        finally:
            server.kill()
            await store.close()

    async def test_memory_is_bounded_while_it_is_away(self) -> None:
        publisher = BlockPublisher(RedisStore.from_url("unix:///nonexistent"), Namespace("m", "r", "f"), "w", 1)
        for generation in range(100):
            fresh = hashes(500, generation)
            publisher.record(fresh, [])
            publisher.record([], fresh[::-1])
        assert publisher.held_blocks == 0
        assert len(publisher._pending) <= 16 * 512 + 500

    @pytest.mark.parametrize("failure", [None, RedisError("refused")])
    async def test_a_cancellation_that_the_library_loses_is_not_lost(self, failure: Exception | None) -> None:
        store = RedisStore.from_url("unix:///nonexistent/redis.sock")

        async def swallow() -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if failure is not None:
                    raise failure from None

        store._redis.ping = swallow  # type: ignore[method-assign]
        task = asyncio.create_task(store.ping())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

        async def clean_up() -> str:
            try:
                await asyncio.sleep(3600)
            finally:
                store._redis.ping = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
                await store.ping()
                return "cleaned up"  # noqa: B012

        task = asyncio.create_task(clean_up())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "cleaned up", "what a cancelled task does to clean up is not cut short"

    async def test_errors_are_typed(self) -> None:
        store = RedisStore.from_url("unix:///nonexistent/redis.sock")
        with pytest.raises(StoreUnavailable):
            await store.ping()
        await store.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://x", "scheme must be"),
        ("redis+cluster://x", "Cluster is not supported"),
        ("redis+sentinel://x", "/service"),
        ("redis+sentinel://x:a/main", "not a port"),
        ("redis+sentinel://x/main?db=a", "db is"),
        ("redis://h:port", "redis_url"),
    ],
)
def test_bad_urls(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        RedisStore.from_url(url)


async def test_sentinel_and_tls_urls_are_understood() -> None:
    for url in ("redis+sentinel://user:p%40ss@a:1,b/main?db=2", "rediss://user:pw@host:6380/1"):
        store = RedisStore.from_url(url)
        assert store._redis.connection_pool.connection_kwargs["password"] in ("p@ss", "pw")
        await store.close()
