"""The tiers below the pool as the agent serves them: blocks move out of its worker's pool, and come back.

Each tier has a thread of its own, which copies in the order of the worker's messages: memory never waits for the disk.
Memory ends with the worker's session; what is on disk is there for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import structlog

from baton.core.hashing import HASH_BYTES
from baton.core.layout import RESERVED_PAGES
from baton.core.tiers import Tier
from baton.kv.handoff import Failure
from baton.kv.local import FetchFailed, MovedOut, MoveOut, Placed, Restore, Restored, RestoredPart
from baton.kv.memory import PoolMemory
from baton.kv.tier.disk import DiskTier
from baton.kv.tier.host import HostTier
from baton.kv.tier.limits import TierLimits
from baton.kv.tier.places import Places
from baton.kv_agent import metrics
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

SPILL_BYTES = 16 << 20  # written to disk at once: so long may a read of the disk wait for it
DISK_STALL_S = 5.0  # without a record read or written: then the disk is given up, and requests compute

Blocks = list[tuple[bytes, int]]
P = ParamSpec("P")
T = TypeVar("T")


class BlockTiers:
    """The tiers of one registered worker. `tell_worker` sends to it. Event loop only, but for the copies.

    Raises ConfigError when the tiers of `limits` cannot be had. Without any, nothing is kept.
    """

    def __init__(
        self,
        pool: PoolMemory,
        limits: TierLimits,
        tell_worker: Callable[[MovedOut | Placed | Restored | FetchFailed], None],
    ) -> None:
        layout = pool.layout
        self._page_size = layout.page_size
        self._block_bytes = layout.layers * layout.page_bytes
        self._pages = pool.pages
        self._host = HostTier(pool, limits.host_bytes) if limits.host_bytes else None
        self._disk = DiskTier(pool, Path(limits.disk_path), limits.disk_bytes) if limits.disk_bytes else None
        self._tell_worker = tell_worker
        self._places = Places()
        self._threads = {tier: ThreadPoolExecutor(1, thread_name_prefix=tier.name.lower()) for tier in Places.TIERS}
        self._under_way: set[asyncio.Task[None]] = set()
        self._disk_user: asyncio.Task[None] | None = None
        self._to_spill = asyncio.Event()
        self._closing: Future[None] | None = None  # of the disk
        self._stopping = False

    @property
    def capacity(self) -> int:
        """Blocks that memory has room for."""
        return self._host.capacity if self._host is not None else 0

    def start(self) -> None:
        """The worker has been greeted. It is told what an earlier agent has left on the disk, as that is found."""
        if self._host is not None and self._disk is not None:
            metrics.disk_tier_up.set(1)
            self._disk_user = asyncio.create_task(self._use_disk(self._host, self._disk))

    def on_worker(self, message: MoveOut | Restore) -> None:
        """Raises ValueError when the message names pages that cannot be."""
        blocks = self._blocks(message)
        if isinstance(message, Restore):
            self._begin(self._restore(message, blocks))
            return
        if self._host is not None:  # a restore that comes before the copies have ended waits behind them
            self._places.came(Tier.HOST, [block_hash for block_hash, _ in blocks])
        self._begin(self._move_out(message, blocks))

    async def stop(self) -> None:
        """On return no copy touches the worker's pool."""
        self._stopping = True
        self._to_spill.set()
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._disk_user is not None:
            await asyncio.wait([self._disk_user], timeout=DISK_STALL_S)
            await cancel_and_wait(self._disk_user)
        if self._disk is not None:
            self._close_disk(self._disk)
        if self._closing is not None:
            await asyncio.wait([asyncio.wrap_future(self._closing)], timeout=DISK_STALL_S)
        self._threads[Tier.HOST].shutdown()
        self._threads[Tier.DISK].shutdown(wait=False)
        if self._host is not None:
            self._host.close()
        metrics.disk_tier_up.set(0)
        for tier in Places.TIERS:
            metrics.tier_blocks.labels(tier=tier.name.lower()).set(0)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _on(self, tier: Tier, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` on the thread of `tier`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads[tier], lambda: work(*args, **kwargs))

    def _blocks(self, message: MoveOut | Restore) -> Blocks:
        pages, data = np.frombuffer(message.page_ids, "<u4").tolist(), message.block_hashes
        hashes = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
        if not all(RESERVED_PAGES <= page < self._pages for page in pages):
            raise ValueError(f"a page id is outside {RESERVED_PAGES} to {self._pages - 1}")
        return list(zip(hashes, pages, strict=True))

    def _tell(self, block_hashes: Iterable[bytes]) -> None:
        """Tell the worker where these blocks are now."""
        for tier, hashes in self._places.by_tier(block_hashes).items():
            self._tell_worker(Placed(tier, b"".join(hashes)))
        for tier in Places.TIERS:
            metrics.tier_blocks.labels(tier=tier.name.lower()).set(self._places.count(tier))

    async def _move_out(self, message: MoveOut, blocks: Blocks) -> None:
        hashes = [block_hash for block_hash, _ in blocks]
        lost = hashes
        if self._host is not None:
            try:
                lost = await self._on(Tier.HOST, self._host.store, blocks)
            except Exception as error:
                log.error("host tier: blocks were lost", blocks=len(blocks), exc_info=error)
            self._places.came(Tier.HOST, hashes)
            self._places.gone(Tier.HOST, lost)
            _count(Tier.HOST, stored=len(hashes), dropped=len(lost))
        self._tell([*hashes, *lost])
        self._tell_worker(MovedOut(message.batch))
        self._to_spill.set()

    async def _restore(self, message: Restore, blocks: Blocks) -> None:
        """Bring blocks from where they are, up to the first that is nowhere, or not intact."""
        attempt, parts, at = message.attempt, [], 0
        while at < len(blocks) and (tier := self._places.nearest(blocks[at][0])) is not None:
            loaded, part = await self._bring(tier, blocks[at:])
            if loaded:
                at += loaded
                parts.append(part)
            else:
                self._places.gone(tier, [blocks[at][0]])
                self._tell([blocks[at][0]])
        if not at:
            self._tell_worker(FetchFailed(attempt, Failure.NOT_HELD.because("the agent has none of the blocks")))
            return
        self._tell_worker(Restored(attempt, message.first_page * self._page_size + at * self._page_size, tuple(parts)))

    async def _bring(self, tier: Tier, blocks: Blocks) -> tuple[int, RestoredPart]:
        """Copy the leading blocks that are in `tier` into the pool; how many, and what that took."""
        held = self._host if tier is Tier.HOST else self._disk

        def copy() -> tuple[int, RestoredPart]:
            started_at = time.time()
            loaded = held.load(blocks) if held is not None else 0
            return loaded, RestoredPart(tier, loaded * self._block_bytes, started_at, time.time())

        try:
            work = self._on(tier, copy)
            loaded, part = await (self._patiently(held, work) if isinstance(held, DiskTier) else work)
        except Exception as error:
            if tier is Tier.DISK:
                self._give_up_disk(error)
            else:
                log.error("host tier: nothing restored", exc_info=error)
            return 0, RestoredPart(tier, 0, 0.0, 0.0)
        _count(tier, restored=loaded)
        return loaded, part

    async def _use_disk(self, host: HostTier, disk: DiskTier) -> None:
        """Take in what is on the disk, then move blocks there whenever memory is short."""
        try:
            await self._recover(disk)
            while not self._stopping and self._disk is not None:
                await self._to_spill.wait()
                self._to_spill.clear()
                while not self._stopping and self._disk is not None and await self._spill(host, disk):
                    pass
        except Exception as error:
            self._give_up_disk(error)

    async def _recover(self, disk: DiskTier) -> None:
        found: Iterator[list[bytes]] = disk.recover()
        while not self._stopping:
            hashes = await self._on(Tier.DISK, next, found, None)
            if hashes is None:
                break
            self._places.came(Tier.DISK, hashes)
            self._tell(hashes)
        log.info("disk tier in use", blocks=self._places.count(Tier.DISK), bytes=disk.size_bytes)

    async def _spill(self, host: HostTier, disk: DiskTier) -> bool:
        """Write some of the oldest blocks in memory to the disk. False: there is room enough."""
        leaving = await self._on(Tier.HOST, host.leave, max(1, SPILL_BYTES // self._block_bytes))
        if not leaving:
            return False
        hashes = [block.block_hash for block in leaving]
        leaving.reverse()  # the last blocks of a prompt leave first; they are read in the order of the prompt
        try:
            result = await self._patiently(disk, self._on(Tier.DISK, disk.store, leaving))
        except Exception as error:
            self._give_up_disk(error)
            await self._on(Tier.HOST, host.stay, hashes)
            return False
        self._places.came(Tier.DISK, result.stored)
        self._places.gone(Tier.DISK, result.dropped)
        _count(Tier.DISK, stored=len(result.stored), dropped=len(result.dropped))
        metrics.disk_tier_bytes.set(disk.size_bytes)
        leaving.clear()
        await self._on(Tier.HOST, host.left, hashes)
        self._places.gone(Tier.HOST, hashes)
        _count(Tier.HOST, dropped=len(hashes))
        self._tell([*hashes, *result.dropped])
        return True

    def _give_up_disk(self, error: Exception) -> None:
        """Go on without the disk, until the next worker comes. Its files stay."""
        if self._disk is None:
            return
        log.error("disk tier: off after an error", error=str(error), exc_info=not isinstance(error, OSError))
        metrics.disk_tier_up.set(0)
        metrics.disk_tier_errors.inc()
        self._close_disk(self._disk)
        self._disk = None
        self._tell(self._places.clear(Tier.DISK))

    def _close_disk(self, disk: DiskTier) -> None:
        disk.abandon()
        self._closing = self._threads[Tier.DISK].submit(disk.close)

    async def _patiently(self, disk: DiskTier, work: Coroutine[Any, Any, T]) -> T:
        """What `work` on the disk's thread returns. Raises TimeoutError when the disk has not got on for a while: then
        it may still be under way, but does not touch the pool."""
        task, progress = asyncio.create_task(work), -1
        while not task.done() and disk.progress != progress:
            progress = disk.progress
            await asyncio.wait([task], timeout=DISK_STALL_S)
        if not task.done():
            disk.abandon()
            raise TimeoutError(f"nothing was read or written in {DISK_STALL_S} s")
        return task.result()


def _count(tier: Tier, stored: int = 0, dropped: int = 0, restored: int = 0) -> None:
    label = tier.name.lower()
    metrics.tier_stored.labels(tier=label).inc(stored)
    metrics.tier_dropped.labels(tier=label).inc(dropped)
    metrics.tier_restored.labels(tier=label).inc(restored)
