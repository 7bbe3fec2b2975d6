"""The canary of readiness: an agent is ready when a page of its own pool has come back by its own transport, as it is.

Other agents take the same way in: what is wrong with the transport here shows before one of them depends on it. Each
pair of agents has a canary of its own besides (`peers.py`).
"""

from __future__ import annotations

import asyncio

import numpy as np

from baton.core.layout import CANARY_PAGE, SCRATCH_PAGE
from baton.kv.memory import PoolMemory
from baton.kv.transport import PeerKey, Transport, TransportError
from baton.kv_agent import metrics

TRIES = 3  # the worker may write into the scratch page meanwhile


async def check_own_pool(transport: Transport, pool: PoolMemory, key: PeerKey, timeout_s: float) -> None:
    """Read the canary of every layer into its scratch page. `pool` is registered, and nobody else reads yet.

    Raises TransportError when other bytes arrive, the transport fails, or it takes longer than `timeout_s`. On return
    no read is going on.
    """
    transport.serving(1)
    reading = asyncio.create_task(_read_back(transport, pool, key))
    try:
        await asyncio.wait([reading], timeout=timeout_s)
        if not reading.done():
            raise TransportError(f"the own canary did not arrive within {timeout_s:g} s")
        reading.result()
        metrics.own_canaries.labels(outcome="right").inc()
    except TransportError:
        metrics.own_canaries.labels(outcome="failed").inc()
        raise
    finally:
        await transport.remove_peer(key)  # ends a read that hangs
        reading.cancel()
        await asyncio.wait([reading])
        transport.serving(0)


async def _read_back(transport: Transport, pool: PoolMemory, key: PeerKey) -> None:
    layers = range(pool.layout.layers)
    scratch, canary = np.array([[SCRATCH_PAGE], [CANARY_PAGE]], np.uint32)
    await transport.add_peer(key, transport.address(), pool.layout, pool.pages)
    for _ in range(TRIES):
        for layer in layers:
            pool.page(layer, SCRATCH_PAGE)[:] = bytes(pool.layout.page_bytes)
        await transport.read(key, layers.start, layers.stop, scratch, canary)
        if all(pool.page(layer, SCRATCH_PAGE) == pool.page(layer, CANARY_PAGE) for layer in layers):
            return
    raise TransportError(f"the own canary came back as other bytes, {TRIES} times, by {transport.name}")
