"""The primary transport: UCX through NIXL, one-sided reads of scattered pages. `nixl_thread` does the work."""

from __future__ import annotations

import asyncio

from baton.core.layout import KvLayout
from baton.kv import ucx
from baton.kv.memory import PoolMemory
from baton.kv.nixl_thread import NixlThread, Read
from baton.kv.transport import PageIds, PeerKey


class NixlTransport:
    """Implements `baton.kv.transport.Transport`. `name` of the agent must differ between epochs.

    Raises TransportError where NIXL or UCX does not load.
    """

    name = "ucx"

    def __init__(self, name: str, host: str) -> None:
        ucx.prepare(host)
        self._thread = NixlThread(name)
        self._address = b""

    async def register(self, pool: PoolMemory) -> None:
        self._address = await self._thread.call(self._thread.register, pool)

    async def unregister(self) -> None:
        await self._thread.call(self._thread.unregister)
        self._address = b""

    def address(self) -> bytes:
        return self._address

    async def add_peer(self, key: PeerKey, address: bytes, layout: KvLayout, pages: int) -> None:
        await self._thread.call(self._thread.add_peer, key, address, layout, pages)

    async def remove_peer(self, key: PeerKey) -> None:
        await self._thread.call(self._thread.cut, key, "the peer was removed")

    async def read(
        self, key: PeerKey, layer_start: int, layer_end: int, local_pages: PageIds, remote_pages: PageIds
    ) -> int:
        if not len(local_pages):
            return 0
        read = Read(key, layer_start, layer_end, local_pages, remote_pages)
        self._thread.post(self._thread.start, read)
        cancelled: asyncio.CancelledError | None = None
        while not read.done.done():
            try:
                await asyncio.wait([read.done])
            except asyncio.CancelledError as error:
                read.unwanted, cancelled = True, error
        if cancelled is not None:
            read.done.exception()  # taken notice of
            raise cancelled
        return read.done.result()

    def serving(self, active: int) -> None:
        self._thread.post(self._thread.serve, active)

    async def close(self) -> None:
        await self._thread.stop()
