"""Worker side of the prefix index: block events of the engine, batched and numbered, to Redis.

The engine's thread records; one task on the event loop publishes. Redis may be away at any time: then only the net
change is kept, and after it has come back what is missing is sent, or everything.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import structlog

from baton.core.errors import StoreUnavailable
from baton.core.tiers import Tier
from baton.prefix.records import Applied, BlockBatch, Namespace

log = structlog.get_logger(__name__)

BATCH_S = 0.02
BATCH_BLOCKS = 512
LEASE_S = 60.0
RENEW_S = 2.0  # also how soon a quiet worker notices that Redis has come back empty
_BACKOFF_S = (0.1, 5.0)


class BlockStore(Protocol):
    """The part of RedisStore that a publisher needs."""

    async def apply(self, namespace: Namespace, batch: BlockBatch, lease_s: float) -> Applied: ...

    async def touch(
        self, namespace: Namespace, worker_id: str, epoch: int, lease_s: float
    ) -> tuple[int, int] | None: ...

    async def forget(self, namespace: Namespace, worker_id: str, epoch: int) -> None: ...


class BlockPublisher:
    """Publishes which blocks one worker holds.

    `record` may be called from any thread and never blocks for long: it changes two dictionaries under a lock.
    Memory is bounded by the pool: every held block once, and every block that changed since the last batch once;
    when the latter outgrow the former, they are dropped and all is sent anew. `sleep` is injected by tests.
    """

    def __init__(
        self,
        store: BlockStore,
        namespace: Namespace,
        worker_id: str,
        epoch: int,
        *,
        lease_s: float = LEASE_S,
        renew_s: float = RENEW_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._worker_id = worker_id
        self._epoch = epoch
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._held: dict[bytes, Tier] = {}  # in order of storing: parents come before children
        self._pending: dict[bytes, Tier | None] = {}  # where it is now, None: removed; net of what was recorded
        self._reset = True
        self._seq = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = False
        self._changed = asyncio.Event()
        self.connected = False

    @property
    def held_blocks(self) -> int:
        return len(self._held)

    def record(
        self, stored: Iterable[bytes], removed: Iterable[bytes], tiered: Iterable[tuple[bytes, Tier]] = ()
    ) -> None:
        """Note what the engine stored, parents before children, what it removed, children before parents, and what is
        no longer in its pool but in another tier."""
        with self._lock:
            for block in stored:
                self._place(block, Tier.POOL)
            for block, tier in tiered:
                self._place(block, tier)
            for block in removed:
                if block in self._held:
                    del self._held[block]
                    self._note(block, None)
            if len(self._pending) > len(self._held) + 16 * BATCH_BLOCKS:
                self._pending.clear()
                self._reset = True
            wake = self._loop is not None and not self._woken
            self._woken = self._woken or wake
        if wake and self._loop is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    def _place(self, block: bytes, tier: Tier) -> None:
        if self._held.get(block) is not tier:
            self._held[block] = tier
            self._note(block, tier)

    def _note(self, block: bytes, tier: Tier | None) -> None:
        self._pending.pop(block, None)  # to the end: a batch keeps the order of last changes
        self._pending[block] = tier

    async def run(self) -> None:
        """Publish until cancelled, or until a newer epoch of this worker publishes."""
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._woken = bool(self._pending)
        self._changed.set()
        delay_s = _BACKOFF_S[0]
        while True:
            try:
                if not await self._round():
                    log.warning("a newer epoch of this worker publishes its blocks; this one stops", epoch=self._epoch)
                    return
                self.connected, delay_s = True, _BACKOFF_S[0]
            except StoreUnavailable as error:
                if self.connected:
                    log.warning("prefix index not reachable; serving goes on", error=error.message)
                self.connected = False
                await self._sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, _BACKOFF_S[1])
                self._changed.set()

    async def withdraw(self) -> None:
        """On a graceful stop, after `run` has ended: drop this worker's blocks from the index."""
        await self._store.forget(self._namespace, self._worker_id, self._epoch)

    async def _round(self) -> bool:
        """Wait for changes and publish them, or renew the lease. False: another epoch has taken over."""
        try:
            async with asyncio.timeout(self._renew_s):
                await self._changed.wait()
        except TimeoutError:
            return await self._renew_lease()
        if self.connected:
            await self._sleep(BATCH_S)
        self._changed.clear()
        with self._lock:
            self._woken = False
        return await self._publish()

    async def _publish(self) -> bool:
        """Send all pending changes, or everything where that is needed. False: another epoch has taken over."""
        while True:
            batches = self._everything() if self._reset else self._changes()
            for batch in batches:
                applied = await self._send(batch)
                if applied is Applied.STALE:
                    return False
                if applied is Applied.GAP:
                    self._reset = True
                    break
            else:
                if not self._reset:
                    return True

    def _changes(self) -> Iterator[BlockBatch]:
        """Take the pending changes, batch by batch."""
        while self._pending:
            with self._lock:
                blocks = list(islice(self._pending, BATCH_BLOCKS))
                changes = [(block, self._pending.pop(block)) for block in blocks]
            yield self._batch(changes)

    def _everything(self) -> Iterator[BlockBatch]:
        """A reset, then every block held."""
        with self._lock:
            held = list(self._held.items())
            self._pending.clear()
            self._reset = False
        for at in range(0, max(1, len(held)), BATCH_BLOCKS):
            yield self._batch(held[at : at + BATCH_BLOCKS], reset=at == 0)

    def _batch(self, blocks: Sequence[tuple[bytes, Tier | None]], reset: bool = False) -> BlockBatch:
        def packed(wanted: Tier | None) -> bytes:
            return b"".join(block for block, tier in blocks if tier is wanted)

        return BlockBatch(
            self._worker_id,
            self._epoch,
            self._seq + 1,
            stored=packed(Tier.POOL),
            removed=packed(None),
            reset=reset,
            host=packed(Tier.HOST),
            disk=packed(Tier.DISK),
        )

    async def _send(self, batch: BlockBatch) -> Applied:
        """Apply one batch. When its fate is unknown, its number is used up and everything is sent next time."""
        try:
            applied = await self._store.apply(self._namespace, batch, self._lease_s)
        except BaseException:
            self._seq, self._reset = batch.seq, True
            raise
        if applied is Applied.OK:
            self._seq = batch.seq
        return applied

    async def _renew_lease(self) -> bool:
        """Renew, and check that Redis still holds what was sent (it may have restarted empty, or evicted keys)."""
        answer = await self._store.touch(self._namespace, self._worker_id, self._epoch, self._lease_s)
        with self._lock:
            quiet = not self._pending
            expected = (self._seq, len(self._held))
        if answer is None or (quiet and answer != expected):
            self._reset = True
            return await self._publish()
        return True
