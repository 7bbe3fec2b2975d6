"""Redis behind the prefix index and the registry.

Keys (`{...}` is a hash tag, so that all keys of a script are in one slot):

    {baton:<ns>}:meta:<worker>            HASH    epoch and seq of what is stored of a worker; has a lease
    {baton:<ns>}:blocks:<worker>:<epoch>  SET     the 16-byte hashes of the blocks in its pool; has the same lease
    ...:host, ...:disk                    SET     the same of those that are only in memory or on disk of its agent
    {baton:<ns>}:workers                  SET     ids of workers with blocks
    {baton:<ns>}:events                   STREAM  every applied batch, bounded
    {baton:registry}:records              HASH    worker id -> epoch and record
    {baton:registry}:lease:<worker>       STRING  exists while the registration is alive

Sets go by worker, not workers by block: a dead worker then costs one UNLINK, whatever it held, and a renewed lease one
PEXPIRE. Who holds a given block is asked of the mirrors only, which keep it in memory.

Memory, measured with benchmarks/prefix_index.py on Redis 6.2 and 7.0: 63 to 85 bytes per worker and block in the sets,
and 17 to 21 bytes per block in the stream, which keeps about STREAM_ENTRIES batches.
"""

from __future__ import annotations

from importlib import resources
from typing import TypeAlias

import msgspec
import redis.asyncio as redis
import structlog

from baton.prefix.records import (
    Applied,
    BlockBatch,
    BlockEvent,
    IndexSnapshot,
    Namespace,
    WorkerBlocks,
    WorkerGone,
    WorkerRecord,
)
from baton.runtime.redis_client import awaited, connect, redis_errors

log = structlog.get_logger(__name__)

STREAM_ENTRIES = 16_384
STREAM_IDLE_MS = 24 * 3600 * 1000  # a namespace nobody writes to any more leaves nothing behind
EVENTS_PER_READ = 256
_BEGINNING = "0-0"
_TIER_SUFFIXES = ("", ":host", ":disk")  # of the key of a worker's blocks, by Tier

Args: TypeAlias = list[bytes | bytearray | memoryview | str | int | float]


class RedisStore:
    """Operations on the registry and on the index. One event loop; calls may run concurrently.

    Everything raises StoreUnavailable when Redis cannot be reached, is not writable, or refuses a command. Commands are
    repeated once by the library after a broken connection; all of them may be.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._apply = client.register_script(_lua("apply"))
        self._touch = client.register_script(_lua("touch"))
        self._forget = client.register_script(_lua("forget"))
        self._register = client.register_script(_lua("register"))
        self._deregister = client.register_script(_lua("deregister"))
        self._workers = client.register_script(_lua("workers"))

    @classmethod
    def from_url(cls, url: str) -> RedisStore:
        """`redis://`, `rediss://` (TLS), `unix://`, or `redis+sentinel://[user:password@]host[:port][,host...]/service`
        with an optional `?db=`. It connects on first use. Raises ConfigError for any other URL."""
        return cls(connect(url))

    async def close(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        async with redis_errors():
            await awaited(self._redis.ping())

    # --- registry ---------------------------------------------------------------------------------------------

    async def register(self, record: WorkerRecord, lease_s: float) -> bool:
        """Write a registration or renew its lease. False: a newer epoch of this worker is registered."""
        keys = ["{baton:registry}:records", f"{{baton:registry}}:lease:{record.worker_id}"]
        args: Args = [record.worker_id, _epoch(record.epoch), msgspec.msgpack.encode(record), int(lease_s * 1000)]
        async with redis_errors():
            return bool(await self._register(keys=keys, args=args))

    async def deregister(self, worker_id: str, epoch: int) -> None:
        keys = ["{baton:registry}:records", f"{{baton:registry}}:lease:{worker_id}"]
        async with redis_errors():
            await self._deregister(keys=keys, args=[worker_id, _epoch(epoch)])

    async def workers(self) -> list[WorkerRecord]:
        """All live registrations. Drops expired ones and, with them, all their blocks."""
        async with redis_errors():
            live, expired = await self._workers(keys=["{baton:registry}:records"], args=["{baton:registry}:lease:"])
        for record in _records(expired):
            await self.forget(record.namespace, record.worker_id, record.epoch)
        return _records(live)

    # --- index, worker side -----------------------------------------------------------------------------------

    async def apply(self, namespace: Namespace, batch: BlockBatch, lease_s: float) -> Applied:
        """Store a batch and tell the mirrors, atomically."""
        args: Args = [
            batch.worker_id,
            _epoch(batch.epoch),
            batch.seq,
            "reset" if batch.reset else "delta",
            batch.stored,
            batch.removed,
            int(lease_s * 1000),
            STREAM_ENTRIES,
            _blocks_key(namespace, batch.worker_id, ""),
            STREAM_IDLE_MS,
            batch.host,
            batch.disk,
        ]
        async with redis_errors():
            answer = await self._apply(keys=_index_keys(namespace, batch.worker_id, batch.epoch), args=args)
        return Applied(answer.decode())

    async def touch(self, namespace: Namespace, worker_id: str, epoch: int, lease_s: float) -> tuple[int, int] | None:
        """Renew the lease of a worker's blocks: (seq, blocks stored), or None when nothing of this epoch is known."""
        args: Args = [_epoch(epoch), int(lease_s * 1000), STREAM_IDLE_MS]
        async with redis_errors():
            answer = await self._touch(keys=_index_keys(namespace, worker_id, epoch), args=args)
        return (answer[0], answer[1]) if answer else None

    async def forget(self, namespace: Namespace, worker_id: str, epoch: int) -> None:
        """Drop all blocks of a worker's epoch, in O(1), and tell the mirrors."""
        args: Args = [worker_id, _epoch(epoch), STREAM_ENTRIES]
        async with redis_errors():
            await self._forget(keys=_index_keys(namespace, worker_id, epoch), args=args)

    # --- index, router side -----------------------------------------------------------------------------------

    async def snapshot(self, namespace: Namespace) -> IndexSnapshot:
        """The whole index of a namespace. Each worker's blocks are read atomically with their seq."""
        async with redis_errors():
            newest = await awaited(self._redis.xrevrange(_key(namespace, "events"), count=1))
            position = newest[0][0].decode() if newest else _BEGINNING
            members = await awaited(self._redis.smembers(_key(namespace, "workers")))
            workers = {}
            for member in members:
                blocks = await self._worker_blocks(namespace, member.decode())
                if blocks is not None:
                    workers[member.decode()] = blocks
        return IndexSnapshot(position, workers)

    async def _worker_blocks(self, namespace: Namespace, worker_id: str) -> WorkerBlocks | None:
        meta_key = _key(namespace, f"meta:{worker_id}")
        epoch = await awaited(self._redis.hget(meta_key, "epoch"))
        if epoch is None:
            await awaited(self._redis.srem(_key(namespace, "workers"), worker_id))
            return None
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(meta_key, "epoch", "seq")
            for suffix in _TIER_SUFFIXES:
                pipe.smembers(_blocks_key(namespace, worker_id, epoch.decode()) + suffix)
            (epoch_read, seq), *tiers = await pipe.execute()
        if epoch_read != epoch:
            return None  # replaced meanwhile: its reset is in the events after the snapshot's position
        return WorkerBlocks(int(epoch), int(seq), *map(set, tiers))

    async def events(self, namespace: Namespace, position: str, block_s: float) -> tuple[list[BlockEvent], str]:
        """Events after `position` and the new position. Waits for the first up to `block_s`, below SOCKET_TIMEOUT_S."""
        async with redis_errors():
            read = self._redis.xread(
                {_key(namespace, "events"): position}, count=EVENTS_PER_READ, block=max(1, int(block_s * 1000))
            )
            answer = await awaited(read)
        if not answer:
            return [], position
        entries = answer[0][1]
        return [_event(fields) for _, fields in entries], entries[-1][0].decode()


def _lua(name: str) -> str:
    return resources.files("baton.prefix").joinpath("lua", f"{name}.lua").read_text()


def _key(namespace: Namespace, name: str) -> str:
    return f"{{baton:{namespace.key}}}:{name}"


def _blocks_key(namespace: Namespace, worker_id: str, epoch: str) -> str:
    return _key(namespace, f"blocks:{worker_id}:{epoch}")


def _index_keys(namespace: Namespace, worker_id: str, epoch: int) -> list[str]:
    blocks = _blocks_key(namespace, worker_id, _epoch(epoch))
    return [
        _key(namespace, f"meta:{worker_id}"),
        blocks,
        _key(namespace, "events"),
        _key(namespace, "workers"),
        *(blocks + suffix for suffix in _TIER_SUFFIXES[1:]),
    ]


def _epoch(epoch: int) -> str:
    """20 digits, so that text order is number order."""
    return f"{epoch:020d}"


def _records(packed: list[bytes]) -> list[WorkerRecord]:
    """Registrations that can be understood; those of another version of Baton may not be."""
    records = []
    for item in packed:
        try:
            records.append(msgspec.msgpack.decode(item, type=WorkerRecord))
        except msgspec.MsgspecError as error:
            log.warning("a worker's registration cannot be understood; it is left out", error=str(error))
    return records


def _event(fields: dict[bytes, bytes]) -> BlockEvent:
    worker_id, epoch, mode = fields[b"w"].decode(), int(fields[b"e"]), fields[b"m"]
    if mode == b"gone":
        return WorkerGone(worker_id, epoch)
    return BlockBatch(
        worker_id,
        epoch,
        int(fields[b"s"]),
        fields[b"a"],
        fields[b"d"],
        reset=mode == b"reset",
        host=fields.get(b"h", b""),
        disk=fields.get(b"k", b""),
    )
