"""Assembly of a router: dependencies built, started and stopped in one place, so that tests can do it in process."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress

import structlog

from baton.prefix.redis_store import RedisStore
from baton.prefix.registry import RegistryWatch
from baton.router import metrics
from baton.router.fleet import Fleet
from baton.router.index import PrefixIndex
from baton.router.lifecycle import Lifecycle
from baton.router.links import Links
from baton.router.placer import Placer
from baton.router.servicer import RouterServicer
from baton.router.settings import RouterSettings
from baton.router.tasks import background
from baton.rpc.server import RpcServer
from baton.rpc.tls import tls_of
from baton.rpc.v1 import router_pb2_grpc
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

_SETTLE_S = 10.0  # after its start a router waits this long at most to hear what all workers serve


class RouterService:
    """One router. `start` once, `stop` once, on the event loop that made it.

    Raises ConfigError when it cannot listen on `settings.listen` or cannot understand `settings.redis_url`.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._store = RedisStore.from_url(settings.redis_url) if settings.redis_url else None
        self.fleet = Fleet(self._loop.time, settings.suspect_s)
        router_id = settings.router_id or f"{socket.gethostname()}-{os.getpid()}"
        tls = tls_of(settings)
        self._links = Links(self.fleet, router_id, settings.workers, tls)
        self._watch = RegistryWatch(self._store, self._links.on_registered) if self._store else None
        self._watching: asyncio.Task[None] | None = None
        self._index = PrefixIndex(self._store)
        placer = Placer(settings, self.fleet, self._index, self._loop)
        self.lifecycle = Lifecycle(settings, self.fleet, placer, self._loop, self._is_settled)
        self.servicer = RouterServicer(
            settings,
            self.lifecycle,
            placer,
            self.fleet,
            self._index,
            self._redis_connected,
            lambda: self._links.unreachable,
        )
        self._server = RpcServer(
            settings.listen,
            [
                (
                    "baton.rpc.v1.Router",
                    lambda server: router_pb2_grpc.add_RouterServicer_to_server(self.servicer, server),
                )
            ],
            tls,
        )

    @property
    def address(self) -> str:
        """Where it listens; an ephemeral port is filled in."""
        if self._settings.listen.startswith("unix:"):
            return self._settings.listen
        return f"{self._settings.listen.rpartition(':')[0]}:{self._server.port}"

    async def start(self) -> None:
        metrics.REDIS_CONNECTED.set_function(self._redis_connected)
        metrics.INDEX_BLOCKS.set_function(lambda: self._index.blocks)
        await self._server.start()
        self._links.start()
        if self._watch is not None:
            self._watching = background(self._watch.run(), "worker registry watch")
        # A router without workers is ready too: requests wait for workers, for a while.
        await self._server.set_ready(True)
        log.info("router listens", address=self.address)

    async def stop(self, drain_s: float) -> None:
        """Say "not serving", let running requests end for `drain_s`, then cut the streams: callers go elsewhere."""
        await self._server.set_ready(False)
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.lifecycle.idle.wait()
        await self._server.stop(0.0)
        await cancel_and_wait(self._watching)
        await self._links.stop()
        await self._index.close()
        if self._store is not None:
            await self._store.close()

    def _redis_connected(self) -> bool:
        return self._watch is not None and self._watch.connected

    def _is_settled(self) -> bool:
        if self._loop.time() - self._started_at > _SETTLE_S:
            return True
        return (self._watch is None or self._watch.connected) and self._links.all_described
