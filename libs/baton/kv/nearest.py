"""The transport that agents use unless told otherwise: peers on this host are mapped, all others are reached by `far`.

Which of the two a peer gets is decided once, when it is added, by trying: a pool that cannot be mapped (another host,
another network namespace, another user) is read over the network.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from baton.core.layout import KvLayout
from baton.kv.mapped import MappedTransport
from baton.kv.memory import PoolMemory
from baton.kv.transport import PageIds, PeerKey, Transport, TransportError

log = structlog.get_logger(__name__)


class NearestTransport:
    """Implements `baton.kv.transport.Transport` by two others. `on_read` hears (name of the one used, bytes)."""

    def __init__(self, far: Transport, on_read: Callable[[str, int], None]) -> None:
        self._far = far
        self._near = MappedTransport()
        self._on_read = on_read
        self._routes: dict[PeerKey, Transport] = {}
        self.name = f"{self._near.name}+{far.name}"

    async def register(self, pool: PoolMemory) -> None:
        await self._far.register(pool)
        await self._near.register(pool)

    async def unregister(self) -> None:
        self._routes.clear()
        await self._near.unregister()
        await self._far.unregister()

    def address(self) -> bytes:
        near, far = self._near.address(), self._far.address()
        return msgspec.msgpack.encode((near, far)) if near else b""

    async def add_peer(self, key: PeerKey, address: bytes, layout: KvLayout, pages: int) -> None:
        await self.remove_peer(key)
        try:
            near, far = msgspec.msgpack.decode(address, type=tuple[bytes, bytes])
        except msgspec.MsgspecError as error:
            raise TransportError(f"the peer's address is not one of this transport: {error}") from error
        try:
            await self._near.add_peer(key, near, layout, pages)
        except TransportError as reason:
            await self._far.add_peer(key, far, layout, pages)
            self._routes[key] = self._far
            log.info("source is read over the network", source=key[0], transport=self._far.name, reason=str(reason))
        else:
            self._routes[key] = self._near
            log.info("source is read from shared memory", source=key[0])

    async def remove_peer(self, key: PeerKey) -> None:
        self._routes.pop(key, None)
        await self._near.remove_peer(key)
        await self._far.remove_peer(key)

    async def read(
        self, key: PeerKey, layer_start: int, layer_end: int, local_pages: PageIds, remote_pages: PageIds
    ) -> int:
        route = self._routes.get(key)
        if route is None:
            raise TransportError(f"no connection to agent {key[0]}, epoch {key[1]}")
        moved = await route.read(key, layer_start, layer_end, local_pages, remote_pages)
        self._on_read(route.name, moved)
        return moved

    def serving(self, active: int) -> None:
        self._far.serving(active)

    async def close(self) -> None:
        await self._near.close()
        await self._far.close()
