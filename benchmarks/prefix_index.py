"""What a block costs in Redis and in a router's mirror, and how long a look-up takes.

python benchmarks/prefix_index.py [--blocks 100000] [--workers 8] [--redis-server PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
import tracemalloc
from pathlib import Path

from baton.core.hashing import block_hashes
from baton.prefix.mirror import PrefixMirror
from baton.prefix.publisher import BATCH_BLOCKS, BlockPublisher
from baton.prefix.records import Namespace
from baton.prefix.redis_store import RedisStore
from baton.testing.redis_server import RedisServer, find_redis_server


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=100_000, help="blocks per worker")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--redis-server", type=Path, default=None)
    args = parser.parse_args()
    binary = args.redis_server or find_redis_server()
    with tempfile.TemporaryDirectory() as folder, RedisServer(binary, Path(folder) / "redis.sock") as server:
        store = RedisStore.from_url(server.url)
        try:
            await measure(store, args.blocks, args.workers)
        finally:
            await store.close()


async def measure(store: RedisStore, blocks: int, workers: int) -> None:
    namespace = Namespace("model", "revision", "fingerprint")
    info = await store._redis.info()
    print(f"server {info['redis_version']}, {workers} workers x {blocks} blocks, batches of {BATCH_BLOCKS}")
    before = info["used_memory"]
    started = time.perf_counter()
    for worker in range(workers):
        publisher = BlockPublisher(store, namespace, f"w{worker}", 1)
        publisher.record(block_hashes(b"%d" % worker, range(blocks), 1), [])
        await publisher._publish()
    elapsed = time.perf_counter() - started
    total = blocks * workers
    stream = await store._redis.memory_usage(f"{{baton:{namespace.key}}}:events", samples=0) or 0
    used = (await store._redis.info())["used_memory"] - before
    print(f"publish          {total / elapsed:12,.0f} blocks/s")
    print(f"redis sets       {(used - stream) / total:12.1f} bytes/block")
    print(f"redis stream     {stream / total:12.1f} bytes/block (bounded by its length)")
    tracemalloc.start()
    started = time.perf_counter()
    mirror = PrefixMirror()
    mirror.load(await store.snapshot(namespace))
    print(f"snapshot         {time.perf_counter() - started:12.2f} s")
    print(f"mirror           {tracemalloc.get_traced_memory()[0] / total:12.1f} bytes/block")
    tracemalloc.stop()
    hashes = block_hashes(b"0", range(min(blocks, 8192)), 1)
    mirror.match(hashes)
    started = time.perf_counter()
    for _ in range(1000):
        mirror.match(hashes)
    print(f"match of {len(hashes)} blocks {(time.perf_counter() - started) * 1000:6.1f} us")


if __name__ == "__main__":
    asyncio.run(main())
