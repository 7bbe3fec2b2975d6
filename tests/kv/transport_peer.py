"""A source in a process of its own: `python transport_peer.py KIND`. Prints its address; serves until killed."""

from __future__ import annotations

import asyncio
import os
import sys

import numpy as np

from baton.core.layout import KvLayout
from baton.kv.memory import PoolMemory
from baton.kv.transport import Transport

LAYOUT = KvLayout("m", "bfloat16", layers=4, page_size=16, kv_heads=4, head_dim=128)  # 32 KiB pages
PAGES = 320  # 40 MiB


def make(kind: str, name: str) -> Transport:
    if kind == "ucx":
        from baton.kv.nixl import NixlTransport

        return NixlTransport(name, "127.0.0.1")
    if kind == "ucxx":
        from baton.kv.ucxx import UcxxTransport

        return UcxxTransport("127.0.0.1")
    if kind == "mapped":
        from baton.kv.mapped import MappedTransport

        return MappedTransport()
    from baton.kv.tcp import TcpTransport

    if kind == "nearest":
        from baton.kv.mapped import MappedTransport
        from baton.kv.nearest import NearestTransport

        return NearestTransport([MappedTransport(), TcpTransport("127.0.0.1")], lambda used, size: None)

    return TcpTransport("127.0.0.1")


def fill(pool: PoolMemory, salt: int = 0) -> None:
    """Every 8 bytes of a (layer, page) say which it is: content that cannot be mistaken."""
    view = words(pool)
    layers, pages = np.indices(view.shape[:2], sparse=True)
    view[:] = (layers * 1_000_000 + pages + salt)[:, :, None]


def words(pool: PoolMemory) -> np.ndarray:
    shape = (pool.layout.layers, pool.pages, pool.layout.page_bytes // 8)
    return np.frombuffer(pool.buffer, np.int64).reshape(shape)


async def main(kind: str) -> None:
    pool = PoolMemory.create(LAYOUT, PAGES)
    fill(pool)
    transport = make(kind, f"source-{os.getpid()}")
    await transport.register(pool)
    transport.serving(1)
    print(transport.address().hex(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
