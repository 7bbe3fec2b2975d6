"""Keeps a router's mirror up to date: one snapshot, then the tail of the event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from baton.core.errors import StoreUnavailable
from baton.prefix.mirror import PrefixMirror
from baton.prefix.records import BlockEvent, IndexSnapshot, Namespace

log = structlog.get_logger(__name__)

WAIT_S = 2.0  # of one blocking read; below the socket time-out
_BACKOFF_S = (0.1, 2.0)


class IndexStore(Protocol):
    """The part of RedisStore that a router's mirror needs."""

    async def snapshot(self, namespace: Namespace) -> IndexSnapshot: ...

    async def events(self, namespace: Namespace, position: str, block_s: float) -> tuple[list[BlockEvent], str]: ...


class IndexSync:
    """Feeds one mirror. When events are missing (the stream was trimmed under a slow reader, Redis restarted), a new
    snapshot is taken. Redis away: the mirror stays as it is and `connected` is False."""

    def __init__(
        self,
        store: IndexStore,
        namespace: Namespace,
        mirror: PrefixMirror,
        *,
        wait_s: float = WAIT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._mirror = mirror
        self._wait_s = wait_s
        self._sleep = sleep
        self.connected = False
        self.snapshots = 0

    async def run(self) -> None:
        """Follow the index until cancelled."""
        delay_s = _BACKOFF_S[0]
        while True:
            try:
                snapshot = await self._store.snapshot(self._namespace)
                self._mirror.load(snapshot)
                self.connected, delay_s = True, _BACKOFF_S[0]
                self.snapshots += 1
                await self._tail(snapshot.position)
                log.info("prefix index: events are missing; taking a new snapshot", model=self._namespace.model)
            except StoreUnavailable as error:
                if self.connected:
                    log.warning("prefix index not reachable; routing goes on", error=error.message)
                self.connected = False
            # Also after a gap: a publisher that is in the middle of a reset needs a moment.
            await self._sleep(delay_s)
            delay_s = min(2 * delay_s, _BACKOFF_S[1])

    async def _tail(self, position: str) -> None:
        """Apply events until one is missing."""
        while True:
            events, position = await self._store.events(self._namespace, position, self._wait_s)
            for event in events:
                if not self._mirror.apply(event):
                    return
