"""`--workers N`: processes on one port, their metrics as one, one that dies, and draining."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from fake_router import until

from baton.core.errors import ConfigError
from baton.gateway import main
from baton.gateway.server import listen
from baton.gateway.settings import GatewaySettings
from baton.router.service import RouterService
from baton.router.settings import RouterSettings
from baton.runtime.lifecycle import cancel_and_wait
from baton.testing.fake_worker import FakeWorker

START_S = 60
ELSEWHERE: list[psutil.Process] = []  # what tests of other modules keep running, such as a browser's driver


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
async def router() -> AsyncIterator[RouterService]:
    worker = FakeWorker("u0", "unified", vocabulary=700)
    await worker.start()
    service = RouterService(RouterSettings(listen="127.0.0.1:0", workers=[worker.address]))
    await service.start()
    yield service
    await service.stop(0.0)
    await worker.kill()


@pytest.fixture(scope="module", autouse=True)
def _elsewhere() -> None:
    ELSEWHERE[:] = psutil.Process().children()


def gateways() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if process not in ELSEWHERE]


async def status(url: str) -> int:
    """On a connection of its own, so that it may be any process that answers."""
    try:
        async with httpx.AsyncClient() as http:
            return (await http.get(url)).status_code
    except httpx.TransportError:
        return 0


async def test_processes_share_a_port_and_their_metrics(router: RouterService, checkpoint: Path) -> None:
    settings = GatewaySettings(
        model=str(checkpoint), routers=[router.address], port=free_port(), metrics_port=free_port(), workers=2,
        drain_s=0, log_level="warning",
    )  # fmt: skip
    url, operators = (f"http://127.0.0.1:{port}" for port in (settings.port, settings.metrics_port))
    serving = asyncio.create_task(main.run(settings))
    try:
        async with asyncio.timeout(START_S):
            while await status(f"{url}/ready") != 200 or await status(f"{operators}/ready") != 200:
                await asyncio.sleep(0.05)
        served = await counted(url, operators)

        [victim, other] = gateways()
        victim.send_signal(signal.SIGKILL)
        async with asyncio.timeout(START_S):
            while len(alive := gateways()) < 2 or victim in alive or other not in alive:
                await asyncio.sleep(0.05)
        assert await chats(url) == 200
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{operators}/metrics")).text
            assert value(text, "baton_gateway_output_tokens_total") >= served  # the dead one's are not forgotten
            assert (await http.post(f"{operators}/drain")).status_code == 200
            assert {await status(f"{url}/ready") for _ in range(8)} <= {503, 0}
            assert (await http.delete(f"{operators}/drain")).status_code == 200
        assert await status(f"{url}/ready") == 200
    finally:
        await cancel_and_wait(serving)
    assert gateways() == [] and await status(f"{url}/ready") == 0


async def chats(url: str) -> int:
    async with httpx.AsyncClient(timeout=30) as http:
        body = {"model": "toy", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
        return (await http.post(f"{url}/v1/completions", json=body)).status_code


async def counted(url: str, operators: str) -> float:
    """Chats until both processes have answered some; their metrics are sums. Returns the tokens of all chats."""
    before = {process.pid: process.cpu_times().user for process in gateways()}
    sent = 0
    while sent < 20 or any(process.cpu_times().user == before[process.pid] for process in gateways()):
        assert await chats(url) == 200
        sent += 1
        assert sent < 500, "one process gets no connection"
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{operators}/metrics")).text
    assert value(text, "baton_gateway_output_tokens_total") == 4 * sent
    assert value(text, 'baton_gateway_requests_total{endpoint="/v1/completions",status="200"}') == sent
    return 4 * sent


def value(text: str, name: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[-1])


async def test_a_port_that_another_program_has_is_an_error(checkpoint: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        settings = GatewaySettings(model=str(checkpoint), port=taken.getsockname()[1], workers=2)
        with pytest.raises(ConfigError, match="cannot listen on"):
            await main.run(settings)
    assert gateways() == []


async def test_settings_that_no_process_can_work_with_end_all(tmp_path: Path) -> None:
    settings = GatewaySettings(model=str(tmp_path), port=free_port(), workers=2)
    with pytest.raises(ConfigError, match="its message is above"):
        await main.run(settings)
    await until(lambda: gateways() == [])
