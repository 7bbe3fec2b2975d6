"""What is kept between requests, in memory and in a real Redis; jobs; pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fake_router import FakeRouterClient
from gateway_site import make_service

from baton.core.errors import StoreUnavailable
from baton.gateway.app import create_app
from baton.gateway.jobs import Jobs
from baton.gateway.parsers.events import CallEnd, CallStart, Content, Reasoning
from baton.gateway.reasoning_tokens import ReasoningTokens
from baton.gateway.store import open_records
from baton.gateway.store.records import MemoryRecords, Records
from baton.gateway.text_model import TextModel
from baton.testing.redis_server import RedisServer, find_redis_server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no Redis server binary on this machine")
    with RedisServer(Path(binary), tmp_path_factory.mktemp("r") / "r.sock") as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def records(request: pytest.FixtureRequest) -> AsyncIterator[Records]:
    url = request.getfixturevalue("redis").url if request.param == "redis" else ""
    opened = open_records(url, 1 << 20)
    yield opened
    await opened.close()


async def test_records(records: Records) -> None:
    assert await records.get("a") is None and not await records.delete("a")
    await records.put("a", b"\x00one", 60)
    await records.put("b", b"two", 60)
    await records.put("a", b"three", 60)
    assert await records.get("a") == b"three" and await records.delete("a")
    assert await records.get("a") is None and await records.get("b") == b"two"
    await records.put("c", b"short", 0.02)
    await asyncio.sleep(0.05)
    assert await records.get("c") is None


async def test_memory_is_bounded() -> None:
    now = 0.0
    records = MemoryRecords(100, clock=lambda: now)
    for number in range(50):
        await records.put(f"k{number:02}", b"x" * 17, 10)
        assert records.used_bytes <= 100
    assert [await records.get(f"k{number:02}") is not None for number in range(44, 50)] == [False] + [True] * 5
    await records.put("huge", b"x" * 1000, 10)
    assert await records.get("huge") is None and records.used_bytes == 0
    await records.put("old", b"x", 10)
    now = 10.0
    assert await records.get("old") is None and records.used_bytes == 0


async def test_a_redis_that_is_away(tmp_path: Path) -> None:
    records = open_records(f"unix://{tmp_path}/none.sock", 1 << 20)
    with pytest.raises(StoreUnavailable):
        await records.get("a")
    await records.close()


async def test_responses_outlive_their_gateway(redis: RedisServer, router: FakeRouterClient, model: TextModel) -> None:
    """Another gateway goes on with the conversation."""
    ids = []
    for _ in range(2):
        service = make_service(router, model, redis_url=redis.url)
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            body = {"model": "toy", "input": "Hi", "max_output_tokens": 4, "previous_response_id": (ids or [None])[-1]}
            answer = (await http.post("/v1/responses", json=body)).json()
            ids.append(answer["id"])
            items = (await http.get(f"/v1/responses/{answer['id']}/input_items")).json()["data"]
        await service.close()
    assert [item["role"] for item in items] == ["user", "assistant", "user"]


async def test_jobs() -> None:
    jobs, ended = Jobs(), []

    async def work(name: str, fails: bool = False) -> None:
        try:
            if fails:
                raise ValueError("a defect, which is logged")
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    for name in ("a", "b", "c"):
        jobs.start(name, work(name))
    jobs.start("wrong", work("wrong", fails=True))
    await asyncio.sleep(0)
    assert await jobs.cancel("b") and not await jobs.cancel("b") and not await jobs.cancel("none")
    assert ended == ["wrong", "b"]
    await jobs.stop()
    assert sorted(ended) == ["a", "b", "c", "wrong"]


def test_reasoning_tokens() -> None:
    counted = ReasoningTokens()
    counted.take(1, [])  # <think>
    counted.take(3, [Reasoning("ab")])
    counted.take(4, [])  # </think>
    counted.take(6, [Content("x")])
    assert counted.count == 3
    counted.take(10, [Reasoning("abcdef"), CallStart(0, "call_1", "fg")])
    counted.take(11, [CallEnd(0)])
    assert counted.count == 3 + 3
