"""The host tier as the agent serves it: blocks move out of its worker's pool, and come back.

Copies are made one after another on a thread of their own, in the order of the worker's messages. The tier ends with
the worker's session: what it held is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog

from baton.core.hashing import HASH_BYTES
from baton.core.layout import RESERVED_PAGES
from baton.kv.handoff import Failure
from baton.kv.local import Fetched, FetchFailed, MovedOut, MoveOut, Restore
from baton.kv.memory import PoolMemory
from baton.kv.tier.host import HostTier
from baton.kv_agent import metrics

log = structlog.get_logger(__name__)

Blocks = list[tuple[bytes, int]]


class Tier:
    """The host tier of one registered worker. `tell_worker` sends to it. Event loop only, but for the copies.

    Raises ConfigError when `capacity_bytes` cannot be had; 0 = no tier, which keeps nothing.
    """

    def __init__(
        self,
        pool: PoolMemory,
        capacity_bytes: int,
        tell_worker: Callable[[MovedOut | Fetched | FetchFailed], None],
    ) -> None:
        self._pool = pool
        self._tier = HostTier(pool, capacity_bytes) if capacity_bytes else None
        self._tell_worker = tell_worker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="host-tier")
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def capacity(self) -> int:
        """Blocks that it has room for."""
        return self._tier.capacity if self._tier is not None else 0

    def on_worker(self, message: MoveOut | Restore) -> None:
        """Raises ValueError when the message names pages that cannot be."""
        blocks = self._blocks(message)
        work = self._move_out(message, blocks) if isinstance(message, MoveOut) else self._restore(message, blocks)
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def stop(self) -> None:
        """On return no copy touches the worker's pool."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._thread.shutdown()
        if self._tier is not None:
            self._tier.close()
        metrics.tier_blocks.set(0)

    def _blocks(self, message: MoveOut | Restore) -> Blocks:
        pages, data = np.frombuffer(message.page_ids, "<u4").tolist(), message.block_hashes
        hashes = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
        if not all(RESERVED_PAGES <= page < self._pool.pages for page in pages):
            raise ValueError(f"a page id is outside {RESERVED_PAGES} to {self._pool.pages - 1}")
        return list(zip(hashes, pages, strict=True))

    async def _move_out(self, message: MoveOut, blocks: Blocks) -> None:
        dropped = [block_hash for block_hash, _ in blocks]
        tier = self._tier
        if tier is not None:
            loop = asyncio.get_running_loop()
            try:
                dropped = await loop.run_in_executor(self._thread, tier.store, blocks)
            except Exception as error:
                log.error("host tier: blocks were lost", blocks=len(blocks), exc_info=error)
            metrics.tier_blocks.set(len(tier))
            metrics.tier_dropped.inc(len(dropped))
            metrics.tier_stored.inc(len(blocks))
        self._tell_worker(MovedOut(message.batch, b"".join(dropped)))

    async def _restore(self, message: Restore, blocks: Blocks) -> None:
        attempt, loaded, started_at = message.attempt, 0, time.time()
        tier = self._tier
        if tier is not None:
            loop = asyncio.get_running_loop()
            try:
                loaded = await loop.run_in_executor(self._thread, tier.load, blocks)
            except Exception as error:
                log.error("host tier: nothing restored", request_id=attempt.request_id, exc_info=error)
        if not loaded or tier is None:
            self._tell_worker(FetchFailed(attempt, Failure.NOT_HELD.because("the host tier has none of the blocks")))
            return
        metrics.tier_restored.inc(loaded)
        done_at = time.time()
        self._tell_worker(
            Fetched(
                attempt=attempt,
                tokens=(message.first_page + loaded) * self._pool.layout.page_size,
                state=b"",
                bytes_read=loaded * tier.block_bytes,
                first_read_at=started_at,
                first_arrival_at=done_at,
                computed_at=started_at,
                done_at=done_at,
            )
        )
