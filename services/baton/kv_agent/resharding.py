"""Reads from a source whose pages are laid out differently: scattered runs of bytes, landed in pages of the own layout.

What lies together on both sides is read where it belongs. What does not, or is of another dtype, is read into a slot of
staging memory, which each source has of its own, so that one that hangs holds up nobody else; from there a thread
scatters it into the pool. Checksums are taken on that thread too, of the bytes as they were sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from xxhash import xxh3_64_intdigest

from baton.core.errors import HandoffFailed
from baton.core.layout import KvLayout
from baton.kv.handoff import Failure, StartRead
from baton.kv.memory import PoolMemory
from baton.kv.reshard import Plan, why_not
from baton.kv.reshard.landing import Landing
from baton.kv.spans import Runs
from baton.kv.staging import StagingMemory
from baton.kv.transport import PeerKey, Transport
from baton.kv_agent import metrics
from baton.runtime.lifecycle import to_its_end

T = TypeVar("T")

SLOTS = 2  # one is read into while the other is scattered


def check_layouts(source: KvLayout, reader: KvLayout) -> None:
    """Raises HandoffFailed, which names both, when the cache of one cannot become the other's."""
    both = f"the source has {source}, the reader {reader}"
    if source.model != reader.model:
        raise HandoffFailed(Failure.MODEL.because(f"caches of different models: {both}"))
    if reason := why_not(source, reader):
        raise HandoffFailed(Failure.LAYOUT.because(f"{reason}: {both}"))


class ReshardedReads:
    """Reads from one source, whose pool has `source_pages` pages of `source`. Event loop only, but for the copies.

    `copier` makes these. Raises HandoffFailed when `staging_bytes` are too few for the source's pages.
    """

    def __init__(
        self,
        pool: PoolMemory,
        transport: Transport,
        key: PeerKey,
        source: KvLayout,
        source_pages: int,
        staging_bytes: int,
        copier: ThreadPoolExecutor,
    ) -> None:
        self._slot_bytes = staging_bytes // SLOTS
        if source.page_bytes > self._slot_bytes:
            detail = f"pages of {source.page_bytes} bytes need a staging_bytes of at least {SLOTS * source.page_bytes}"
            raise HandoffFailed(Failure.LAYOUT.because(f"{detail}; it is {staging_bytes}"))
        self._pool = pool
        self._transport = transport
        self._key = key
        self._source = source
        self._source_pages = source_pages
        self._copier = copier
        self._staging = StagingMemory(SLOTS * self._slot_bytes)
        metrics.staging_bytes.inc(self._staging.size_bytes)
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(SLOTS):
            self._free.put_nowait(slot * self._slot_bytes)

    async def read(self, start: StartRead, plan: Plan) -> tuple[int, int]:
        """Carry `start` out: bytes moved, and the checksum of what was sent, 0 when none is asked for.

        Ends as `Transport.read` does: when it returns or raises, nothing writes into the pool any more.
        """
        landing = Landing(self._pool, plan, start.local_pages)
        moved = checksum = 0
        for layers, pages in self._pieces(start, plan):
            ids = start.remote_pages[pages.start - start.first_index : pages.stop - start.first_index]
            place = layers, pages.start, ids, self._source_pages
            if plan.lands_directly:
                runs = plan.direct_runs(*place, start.local_pages, self._pool.pages)
                moved += await self._transport.read_runs(self._key, runs, self._pool)
                if start.verify:
                    checksum ^= await self._copy(landing.landed_checksum, layers, pages)
            else:
                async with self._slot() as at:
                    runs = plan.staged_runs(*place).shifted(at)
                    size = await self._transport.read_runs(self._key, runs, self._staging)
                    staged = self._staging.buffer[at : at + size]
                    checksum ^= await self._copy(_land, landing, staged, layers, pages, start.verify)
                    moved += size
                    metrics.staged_bytes.inc(size)
        metrics.resharded_bytes.inc(moved)
        return moved, checksum

    def close(self) -> None:
        """The transport reads from this source no more: the memory goes with the last read that has some."""
        metrics.staging_bytes.dec(self._staging.size_bytes)

    async def page_checksum(self, layer: int, page_id: int) -> int:
        """Of one whole page of the source, as it arrives: what the canary is compared by."""
        async with self._slot() as at:
            start, size = (layer * self._source_pages + page_id) * self._source.page_bytes, self._source.page_bytes
            await self._transport.read_runs(self._key, Runs.one(at, start, size), self._staging)
            return xxh3_64_intdigest(self._staging.buffer[at : at + size], layer << 32)

    def _pieces(self, start: StartRead, plan: Plan) -> Iterator[tuple[range, range]]:
        """Layers x pages whose cells fit a slot: several layers of all pages, or some pages of a layer."""
        first, last = start.first_index, start.first_index + len(start.remote_pages)
        layer_bytes = plan.cells_bytes(first, last)
        layer_step = max(1, self._slot_bytes // max(1, layer_bytes))
        page_step = (
            max(1, self._slot_bytes // self._source.page_bytes) if layer_bytes > self._slot_bytes else last - first
        )
        for layer in range(start.layer_start, start.layer_end, layer_step):
            for page in range(first, last, page_step):
                yield range(layer, min(layer + layer_step, start.layer_end)), range(page, min(page + page_step, last))

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[int]:
        """Where a free slot of the staging memory starts."""
        at = await self._free.get()
        try:
            yield at
        finally:
            self._free.put_nowait(at)

    async def _copy(self, work: Callable[..., T], *args: object) -> T:
        """Run on the copying thread, to its end even when the caller is cancelled: it writes into the pool."""
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._copier, work, *args))


def _land(landing: Landing, staged: memoryview, layers: range, pages: range, verify: bool) -> int:
    checksum = landing.staged_checksum(staged, layers, pages) if verify else 0
    landing.scatter(staged, layers, pages)
    return checksum
