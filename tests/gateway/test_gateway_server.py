from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from fake_router import FakeRouterClient, until
from gateway_site import make_service, running

from baton.core.errors import CheckpointError, ConfigError
from baton.gateway import main
from baton.gateway.openai.chat import ChatEndpoint
from baton.gateway.server import listen
from baton.gateway.service import Service
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel

HELLO = [{"role": "user", "content": "Hello there."}]
BODY = {"model": "toy", "messages": HELLO, "max_tokens": 4000, "stream": True}


def test_the_gateway_imports_no_torch_and_starts_fast() -> None:
    code = (
        "import sys, baton.gateway.main, baton.client; "
        "bad = {'torch', 'transformers', 'numpy', 'redis'} & set(sys.modules); "
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_busy_port_is_named() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError, match="--port") as caught:
        listen("127.0.0.1", first.getsockname()[1])
    assert str(first.fileno()) and re.search(r"port \d+ of 127.0.0.1 is in use", caught.value.message)


def test_an_impossible_address_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192.0.2.1:0"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize("settings, words", [({}, "--model"), ({"model": "x", "routers": []}, "--routers")])
async def test_what_the_gateway_cannot_do_without(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await main.run(GatewaySettings(**settings))


async def test_a_checkpoint_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "tokenizer.json"))):
        await main.run(GatewaySettings(model=str(tmp_path), port=0))
    with pytest.raises(CheckpointError, match="no such directory"):
        await main.run(GatewaySettings(model=str(tmp_path / "nothing"), port=0))


@pytest.mark.parametrize("content", ["{", "[]", '{"version": "1.0"}'])
async def test_a_corrupt_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "tokenizer.json"))):
        await main.run(GatewaySettings(model=str(tmp_path), port=0))


@pytest.mark.parametrize(
    "name, content", [("generation_config.json", {"top_p": 3}), ("generation_config.json", {"temperature": "hot"})]
)
def test_impossible_sampling_defaults(checkpoint: Path, tmp_path: Path, name: str, content: dict) -> None:
    (tmp_path / "tokenizer.json").symlink_to(checkpoint / "tokenizer.json")
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=name):
        TextModel.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "temperature"),
    [
        ({"do_sample": True, "temperature": 0.6}, 0.6),
        ({"temperature": 0.6}, 0.6),
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.6}, 0.0),
    ],
)
async def test_the_checkpoints_sampling_defaults(
    checkpoint: Path, tmp_path: Path, router: FakeRouterClient, content: dict, temperature: float
) -> None:
    (tmp_path / "tokenizer.json").symlink_to(checkpoint / "tokenizer.json")
    defaults = {**content, "top_k": 20, "eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults))
    model = TextModel.load(tmp_path)
    assert model.eos_token_ids == {1, 2}
    service = make_service(router, model)
    await service.catalog.refresh()
    async with running(service) as url, httpx.AsyncClient(base_url=url) as http:
        await http.post("/v1/completions", json={"model": "toy", "prompt": "x"})
        await http.post("/v1/completions", json={"model": "toy", "prompt": "x", "temperature": 1, "top_k": -1})
    first, second = (request.sampling for request in router.requests)
    assert (first.temperature, first.top_k) == (temperature, 20) and (second.temperature, second.top_k) == (1, 0)


async def test_a_body_of_100_mib_is_refused_and_not_kept(url: str) -> None:
    async def body():
        for _ in range(100):
            yield b"x" * (1 << 20)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        declared = await http.post("/v1/completions", content=body(), headers={"content-length": str(100 << 20)})
        chunked = await http.post("/v1/completions", content=body())
    assert (declared.status_code, chunked.status_code) == (413, 413)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


async def open_stream(url: str, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection, limit=4096)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
    return reader, writer


async def test_a_client_that_does_not_read_holds_a_bounded_amount_and_is_given_up(
    router: FakeRouterClient, model: TextModel
) -> None:
    """20 logprobs a token make 8 MB of events; the router is asked for no more than what fits into the buffers."""
    service = make_service(router, model, slow_reader_timeout_s=0.5)
    async with running(service) as url:
        _, writer = await open_stream(url, {**BODY, "logprobs": True, "top_logprobs": 20})
        await until(lambda: router.running == 1)
        await until(lambda: router.running == 0)
        assert router.cancelled == 1 and 64 < router.sent < 3000
        writer.close()


async def test_a_silent_router_keeps_the_stream_alive(router: FakeRouterClient, model: TextModel) -> None:
    router.gate = asyncio.Event()
    service = make_service(router, model, keep_alive_s=0.02)
    async with running(service) as url, httpx.AsyncClient(base_url=url) as http:
        request = http.build_request("POST", "/v1/chat/completions", json={**BODY, "max_tokens": 2})
        lines = (await http.send(request, stream=True)).aiter_lines()
        assert [await anext(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        router.gate.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"


async def test_stopping_ends_streams_with_an_error_event(router: FakeRouterClient, model: TextModel) -> None:
    router.gate = asyncio.Event()
    service = make_service(router, model, keep_alive_s=0.02)
    async with httpx.AsyncClient() as http:
        async with running(service) as url:
            response = await http.send(http.build_request("POST", f"{url}/v1/chat/completions", json=BODY), stream=True)
            lines = response.aiter_lines()
            assert await anext(lines) == ": keep-alive"
        assert "shutting down" in [line async for line in lines if line][-1]
    assert router.running == 0 and router.cancelled == 1


async def test_stopping_lets_short_answers_end(router: FakeRouterClient, model: TextModel) -> None:
    router.gate = asyncio.Event()
    service = make_service(router, model)
    async with httpx.AsyncClient() as http:
        async with running(service, drain_s=10) as url:
            body = {"model": "toy", "messages": HELLO, "max_tokens": 3}
            asking = asyncio.create_task(http.post(f"{url}/v1/chat/completions", json=body))
            await until(lambda: router.running == 1)
            asyncio.get_running_loop().call_later(0.05, router.gate.set)
        response = await asking
    assert response.json()["usage"]["completion_tokens"] == 3


async def test_the_loop_runs_while_a_long_prompt_is_prepared(service: Service) -> None:
    """Ten thousand turns and a million characters: parsing, template and tokenizer together take a second or more."""
    messages = [{"role": "user", "content": "hello world, this is a text. " * 4}] * 10_000
    body = json.dumps({"model": "toy", "messages": messages}).encode()
    read = ChatEndpoint(service)._read
    turns = 0
    task = asyncio.create_task(service.prepare(body, read))
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert read(body)[1] == task.result()[1]
    assert turns > 3, "the loop stood still"


async def test_short_prompts_stay_on_the_loop(service: Service) -> None:
    """A thread would cost more than the work."""
    assert await service.prepare(b"x", lambda body: threading.current_thread()) is threading.main_thread()
    assert await service.prepare(b"x" * 100_000, lambda body: threading.current_thread()) is not threading.main_thread()
