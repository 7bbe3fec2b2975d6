"""The worker registry: a worker's heartbeat, and the watch that routers keep on all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from baton.core.errors import StoreUnavailable
from baton.prefix.records import WorkerRecord

log = structlog.get_logger(__name__)

WATCH_PERIOD_S = 0.5
_RETRY_S = 0.5


class RegistryStore(Protocol):
    """The part of RedisStore that the registry needs."""

    async def register(self, record: WorkerRecord, lease_s: float) -> bool: ...

    async def deregister(self, worker_id: str, epoch: int) -> None: ...

    async def workers(self) -> list[WorkerRecord]: ...


class WorkerRegistration:
    """Keeps one worker registered: renewed three times per lease. `sleep` is injected by tests."""

    def __init__(
        self,
        store: RegistryStore,
        record: WorkerRecord,
        lease_s: float,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._record = record
        self._lease_s = lease_s
        self._sleep = sleep
        self.registered = False

    async def run(self) -> None:
        """Register and renew until cancelled. Redis away: keeps trying. A newer epoch registered: keeps trying too,
        since that one may end before this one does."""
        while True:
            try:
                accepted = await self._store.register(self._record, self._lease_s)
            except StoreUnavailable as error:
                self._note(False, error.message)
                await self._sleep(min(_RETRY_S, self._lease_s / 3))
                continue
            self._note(accepted, "a newer incarnation of this worker is registered")
            await self._sleep(self._lease_s / 3)

    async def deregister(self) -> None:
        """On a graceful stop, after `run` has ended. Another epoch's registration is left alone."""
        self.registered = False
        await self._store.deregister(self._record.worker_id, self._record.epoch)

    def _note(self, registered: bool, why_not: str) -> None:
        if self.registered and not registered:
            log.warning("not registered", worker=self._record.worker_id, reason=why_not)
        elif registered and not self.registered:
            log.info("registered", worker=self._record.worker_id, address=self._record.address)
        self.registered = registered


class RegistryWatch:
    """Tells a router which workers are registered.

    `on_workers(records)` is called when the list has changed, the first time in any case. `connected` says whether
    Redis answers; while it does not, nothing is called: the last list stands.
    """

    def __init__(
        self,
        store: RegistryStore,
        on_workers: Callable[[list[WorkerRecord]], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._on_workers = on_workers
        self._sleep = sleep
        self._last: set[WorkerRecord] | None = None
        self.connected = False

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                records = await self._store.workers()
            except StoreUnavailable as error:
                if self.connected or self._last is None:
                    log.warning("worker registry not reachable", error=error.message)
                    self._last = self._last or set()
                self.connected = False
            else:
                if set(records) != self._last or not self.connected:
                    self._last = set(records)
                    self._on_workers(records)
                self.connected = True
            await self._sleep(WATCH_PERIOD_S)
