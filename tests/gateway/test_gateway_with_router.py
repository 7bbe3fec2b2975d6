"""The gateway with everything real but the model: its entry point, the client, a router, workers with a toy engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
from fake_router import until

from baton.client import BatonClient, GenerateRequest, SamplingParams
from baton.gateway import main
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel
from baton.router.service import RouterService
from baton.router.settings import RouterSettings
from baton.runtime.lifecycle import cancel_and_wait
from baton.testing.fake_worker import FakeWorker
from baton.testing.toy_engine import ToyHandoffs, toy_tokens

VOCABULARY = 700  # of the toy; the tokenizer of the test checkpoint has 800


@pytest.fixture
async def workers() -> AsyncIterator[dict[str, FakeWorker]]:
    handoffs = ToyHandoffs()
    roles = {"p0": "prefill", "d0": "decode", "d1": "decode"}
    made = {name: FakeWorker(name, role, handoffs, vocabulary=VOCABULARY) for name, role in roles.items()}
    for worker in made.values():
        await worker.start()
    yield made
    for worker in made.values():
        await worker.kill()


@pytest.fixture
async def routing(workers: dict[str, FakeWorker]) -> AsyncIterator[RouterService]:
    addresses = [worker.address for worker in workers.values()]
    service = RouterService(RouterSettings(listen="127.0.0.1:0", workers=addresses, local_extend_tokens=0))
    await service.start()
    yield service
    await service.stop(0.0)


@pytest.fixture
async def url(routing: RouterService, checkpoint: Path) -> AsyncIterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = GatewaySettings(model=str(checkpoint), routers=[routing.address], port=port, drain_s=0)
    serving = asyncio.create_task(main.run(settings))
    async with httpx.AsyncClient() as http:
        async with asyncio.timeout(20):
            while not await _is_ready(http, port):
                await asyncio.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    await cancel_and_wait(serving)


async def _is_ready(http: httpx.AsyncClient, port: int) -> bool:
    try:
        return (await http.get(f"http://127.0.0.1:{port}/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def test_the_whole_way(url: str, model: TextModel, workers: dict[str, FakeWorker]) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-any", max_retries=0) as client:
        messages = [{"role": "user", "content": "Hello there."}]
        prompt = model.template.render(messages)
        ids = model.tokenizer.encode([prompt], add_special_tokens=False)[0]
        expected = model.tokenizer.decode(toy_tokens(ids, 40, vocabulary=VOCABULARY))
        options = {"model": "toy", "messages": messages, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
        answer = await client.chat.completions.create(**options)
        assert answer.choices[0].message.content == expected
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 40)
        text = ""
        async for chunk in await client.chat.completions.create(stream=True, logprobs=True, **options):
            text += chunk.choices[0].delta.content or ""
        assert text == expected
        with pytest.raises(openai.BadRequestError, match="4096"):
            await client.completions.create(model="toy", prompt=[7] * 5000)


async def test_a_lost_worker_is_a_pause_not_an_error(
    url: str, model: TextModel, workers: dict[str, FakeWorker]
) -> None:
    for worker in workers.values():
        worker.step_s = 0.01
    prompt = [5, 6, 7]
    expected = model.tokenizer.decode([*prompt, *toy_tokens(prompt, 60, vocabulary=VOCABULARY)])
    expected = expected.removeprefix(model.tokenizer.decode(prompt))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-any", max_retries=0) as client:
        text, killed = "", False
        stream = await client.completions.create(
            model="toy", prompt=prompt, max_tokens=60, stream=True, extra_body={"ignore_eos": True}
        )
        async for chunk in stream:
            text += chunk.choices[0].text
            if text and not killed:
                busy = next(worker for name, worker in workers.items() if name[0] == "d" and worker.engine.running)
                await busy.kill()
                killed = True
        assert killed and text == expected


async def test_a_client_that_leaves_frees_the_workers(url: str, workers: dict[str, FakeWorker]) -> None:
    for worker in workers.values():
        worker.step_s = 0.01
    async with httpx.AsyncClient() as http:
        body = {"model": "toy", "prompt": [5, 6, 7], "max_tokens": 4000, "stream": True, "ignore_eos": True}
        async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
            await anext(response.aiter_lines())
            assert any(worker.engine.requests for worker in workers.values())
    await until(lambda: not any(worker.engine.requests for worker in workers.values()))


async def test_health_and_readiness_follow_the_fleet(url: str, workers: dict[str, FakeWorker]) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/health")).json()["workers"] == {"prefill": 1, "decode": 2}
        await workers["p0"].kill()
        await workers["d0"].kill()
        await workers["d1"].kill()
        async with asyncio.timeout(10):
            while (await http.get("/ready")).status_code != 503:
                await asyncio.sleep(0.02)
        assert (await http.get("/health")).json()["status"] == "degraded"


async def test_the_first_tokens_say_what_was_cached(routing: RouterService) -> None:
    """A stop string ends a request before its FinishedEvent, and the gateway must tell the usage all the same."""
    async with BatonClient([routing.address]) as client:
        request = GenerateRequest("toy", [5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True))
        events = [event async for event in client.generate(request)]
    assert [event.cached_tokens for event in events[:-1]] == [0, None, None, None]
