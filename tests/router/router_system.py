"""Real gRPC in one process: fake workers, routers and a client, on ephemeral ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from baton.client import BatonClient
from baton.router.service import RouterService
from baton.router.settings import RouterSettings
from baton.testing.fake_worker import FakeWorker
from baton.testing.toy_engine import ToyHandoffs


class System:
    """What `running` has started."""

    def __init__(self) -> None:
        self.handoffs = ToyHandoffs()
        self.workers: dict[str, FakeWorker] = {}
        self.routers: list[RouterService] = []
        self.client: BatonClient

    def __getitem__(self, worker_id: str) -> FakeWorker:
        return self.workers[worker_id]

    async def add_worker(self, worker_id: str, role: str, **options: Any) -> FakeWorker:
        worker = self.workers[worker_id] = FakeWorker(worker_id, role, self.handoffs, **options)
        await worker.start()
        return worker

    async def add_router(self, listen: str = "127.0.0.1:0", **settings: Any) -> RouterService:
        workers = settings.pop("workers", [worker.address for worker in self.workers.values()])
        router = RouterService(RouterSettings(listen=listen, workers=workers, **settings))
        await router.start()
        self.routers.append(router)
        return router

    def assert_quiet(self) -> None:
        for router in self.routers:
            assert router.lifecycle.in_flight == 0
        for worker in self.workers.values():
            assert worker.engine.requests == {}


@asynccontextmanager
async def running(
    roles: str = "pd", *, routers: int = 1, worker: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[System]:
    """A system with one worker per letter of `roles` (p, d or u; ids p0, d0, ...), all connected to every router."""
    system = System()
    names = {"p": "prefill", "d": "decode", "u": "unified"}
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_stop, system)
        for letter in roles:
            number = sum(known.startswith(letter) for known in system.workers)
            await system.add_worker(f"{letter}{number}", names[letter], **(worker or {}))
        for _ in range(routers):
            await system.add_router(**settings)
        system.client = await stack.enter_async_context(BatonClient([router.address for router in system.routers]))
        for router in system.routers:
            await until(lambda router=router: len(router.fleet.workers) == len(roles))  # type: ignore[misc]
        yield system


async def _stop(system: System) -> None:
    for router in system.routers:
        await router.stop(0.0)
    for worker in system.workers.values():
        await worker.kill()


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)
