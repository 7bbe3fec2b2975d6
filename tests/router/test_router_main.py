"""The router as a process runs it."""

from __future__ import annotations

import asyncio
import socket

import pytest
from router_system import running, until

from baton.client import BatonClient, GenerateRequest, SamplingParams
from baton.core.errors import ConfigError
from baton.router.main import run
from baton.router.settings import RouterSettings
from baton.testing.toy_engine import toy_tokens


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_serves_until_cancelled_and_tells_its_metrics() -> None:
    async with running("pd", worker={"step_s": 0.005}) as system:
        settings = RouterSettings(
            listen=f"127.0.0.1:{free_port()}",
            workers=[worker.address for worker in system.workers.values()],
            metrics_port=free_port(),
            drain_s=10.0,
        )
        task = asyncio.create_task(run(settings))
        async with BatonClient([settings.listen]) as client:
            await until(lambda: client.connected)
            answering = asyncio.create_task(
                client.complete(GenerateRequest("toy", [1, 2], SamplingParams(max_tokens=30)))
            )
            await until(lambda: bool(system["d0"].engine.requests))
            text = (await get(settings.metrics_port, "/metrics")).decode()
            for name in (
                "ttft_seconds_bucket",
                "placements_total",
                "workers_connected",
                "redis_connected",
                "in_flight",
            ):
                assert f"baton_router_{name}" in text
            task.cancel()
            assert (await answering).token_ids == toy_tokens([1, 2], 30), "what runs may end"
            await asyncio.wait([task])
            assert task.cancelled()
            await until(lambda: not client.connected)


async def test_a_busy_port_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=address):
            await run(RouterSettings(listen=address))


async def test_a_bad_redis_url_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="redis_url"):
        await run(RouterSettings(listen="127.0.0.1:0", redis_url="http://x"))
