"""Whether agents on this host can read each other's pools from shared memory: reads one page that way, and compares."""

from __future__ import annotations

import asyncio

import numpy as np

from baton.core.layout import CANARY_PAGE, SCRATCH_PAGE, KvLayout
from baton.kv.mapped import MappedTransport
from baton.kv.memory import PoolMemory
from baton.kv.transport import TransportError

_LAYOUT = KvLayout("probe", "bfloat16", layers=1, page_size=16, kv_heads=1, head_dim=64)
_PAGES = 3


def failure() -> str:
    """Why they cannot; empty when they can."""
    try:
        return asyncio.run(_read_one_page())
    except (TransportError, OSError) as error:
        return str(error)


async def _read_one_page() -> str:
    pools = [PoolMemory.create(_LAYOUT, _PAGES) for _ in range(2)]
    source, reader = MappedTransport(), MappedTransport()
    try:
        pools[0].write_canary(worker_epoch=1)
        await source.register(pools[0])
        await reader.register(pools[1])
        await reader.add_peer(("probe", 1), source.address(), _LAYOUT, _PAGES)
        page, scratch = np.array([[CANARY_PAGE], [SCRATCH_PAGE]], np.uint32)
        await reader.read(("probe", 1), 0, 1, scratch, page)
        return "" if pools[1].holds_canary(1, SCRATCH_PAGE) else "other bytes arrived than were sent"
    finally:
        await reader.close()
        await source.close()
        for pool in pools:
            pool.close()
