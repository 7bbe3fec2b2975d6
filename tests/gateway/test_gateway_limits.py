"""Limits of API keys: the arithmetic, in memory and in Redis alike; outages; and what clients are told."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import redis as redis_library
from fake_router import FakeRouterClient, until
from gateway_site import make_service
from test_gateway_keys import CHAT, HELLO, Given, guarded

from baton.core.errors import LimitReached, StoreUnavailable, Unavailable
from baton.gateway.access import Access
from baton.gateway.app import create_app
from baton.gateway.auth.key import ApiKey, KeyTerms, create
from baton.gateway.auth.ring import KeyRing
from baton.gateway.limits import redis_store
from baton.gateway.limits.limiter import Limiter
from baton.gateway.limits.memory_store import MemoryStore, month_left_s
from baton.gateway.limits.outage import LOCAL, REFUSE
from baton.gateway.limits.redis_store import RedisLimitStore
from baton.gateway.limits.standing import Refusal, Standing
from baton.gateway.text_model import TextModel
from baton.testing.redis_server import RedisServer, find_redis_server

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def key_with(**limits: int) -> ApiKey:
    return create(KeyTerms(tenant="acme", **limits))[0]


@pytest.fixture
def redis(tmp_path: Path) -> RedisServer:
    with RedisServer(find_redis_server(), tmp_path / "redis.sock") as server:
        yield server


@pytest.fixture
async def shared(redis: RedisServer) -> AsyncIterator[RedisLimitStore]:
    store = RedisLimitStore(redis.url)
    yield store
    await store.close()


# --- the arithmetic ------------------------------------------------------------------------------------------------


async def test_a_minutes_worth_at_once_and_then_evenly() -> None:
    clock = Clock()
    store, key = MemoryStore(clock), key_with(requests_per_minute=6)
    standings = [await store.enter(key, str(number)) for number in range(6)]
    assert [standing.requests_left for standing in standings] == [5, 4, 3, 2, 1, 0]
    assert standings[-1].requests_reset_s == pytest.approx(60)
    refused = await store.enter(key, "7")
    assert refused.refusal is Refusal.REQUESTS and refused.retry_s == pytest.approx(10)
    clock.now += 9.9
    assert (await store.enter(key, "8")).refusal is Refusal.REQUESTS
    clock.now += 0.2
    assert (await store.enter(key, "9")).refusal is None
    assert (await store.enter(key, "10")).refusal is Refusal.REQUESTS


async def test_tokens_are_booked_and_put_right() -> None:
    clock = Clock()
    store, key = MemoryStore(clock), key_with(tokens_per_minute=600)
    assert (await store.reserve(key, 500)).tokens_left == 100
    refused = await store.reserve(key, 200)
    assert refused.refusal is Refusal.TOKENS and refused.retry_s == pytest.approx(10)
    await store.leave(key, "a", 500, 30)
    assert (await store.reserve(key, 200)).tokens_left == 370
    await store.leave(key, "b", 200, 500)  # counted for longer than was booked
    assert (await store.enter(key, "c")).tokens_left == 70


async def test_a_request_larger_than_the_limit_runs_alone() -> None:
    clock = Clock()
    store, key = MemoryStore(clock), key_with(tokens_per_minute=100)
    assert (await store.reserve(key, 5_000)).tokens_left == 0
    assert (await store.reserve(key, 1)).refusal is Refusal.TOKENS
    await store.leave(key, "a", 5_000, 40)
    assert (await store.reserve(key, 60)).refusal is None


async def test_places_and_a_months_quota() -> None:
    clock = Clock()
    store, key = MemoryStore(clock), key_with(concurrent=2, monthly_tokens=1_000)
    assert (await store.enter(key, "a")).refusal is (await store.enter(key, "b")).refusal is None
    assert (await store.enter(key, "c")).refusal is Refusal.CONCURRENT
    await store.leave(key, "a", 0, 0)
    assert (await store.enter(key, "c")).refusal is None
    await store.leave(key, "c", 0, 0)
    await store.reserve(key, 900)
    assert (await store.reserve(key, 900)).refusal is None  # something was left
    refused = await store.reserve(key, 1)
    assert refused.refusal is Refusal.QUOTA and refused.retry_s == pytest.approx(9.5 * 86_400)
    await store.leave(key, "b", 1_800, 200)
    assert (await store.enter(key, "d")).refusal is None
    await store.reserve(key, 800)
    assert (await store.enter(key, "e")).refusal is Refusal.QUOTA
    clock.now += refused.retry_s
    assert (await store.enter(key, "e")).refusal is None


def test_the_end_of_a_month() -> None:
    for year, month, day, left in ((2026, 12, 31, 1), (2028, 2, 28, 2), (2027, 2, 28, 1)):
        assert month_left_s(datetime(year, month, day, tzinfo=UTC).timestamp()) == left * 86_400


async def test_redis_counts_as_memory_does(shared: RedisLimitStore) -> None:
    """Random questions to both. Limits are small, so that the milliseconds that pass in Redis add nothing."""
    draw = random.Random(7)
    for _ in range(12):
        clock = Clock()
        clock.now = time.time()
        key = key_with(
            requests_per_minute=draw.choice([0, 5, 20]), tokens_per_minute=draw.choice([0, 20, 30]),
            concurrent=draw.choice([0, 1, 3]), monthly_tokens=draw.choice([0, 60]),
        )  # fmt: skip
        memory, running = MemoryStore(clock), []
        for number in range(40):
            match draw.choice(["enter", "enter", "reserve", "leave"]):
                case "enter":
                    answers = [await store.enter(key, str(number)) for store in (memory, shared)]
                    if answers[0].refusal is None:
                        running.append(str(number))
                case "reserve":
                    tokens = draw.randrange(40)
                    answers = [await store.reserve(key, tokens) for store in (memory, shared)]
                case "leave" if running:
                    id, reserved = running.pop(draw.randrange(len(running))), draw.randrange(40)
                    used = draw.randrange(40)
                    for store in (memory, shared):
                        await store.leave(key, id, reserved, used)
                    continue
                case _:
                    continue
            ours, theirs = answers
            assert theirs.refusal is ours.refusal, (number, key)
            assert (theirs.requests_left, theirs.tokens_left) == (ours.requests_left, ours.tokens_left)
            for name in ("requests_reset_s", "tokens_reset_s", "retry_s"):
                assert getattr(theirs, name) == pytest.approx(getattr(ours, name), abs=2.0)


async def test_time_passes_in_redis_too(shared: RedisLimitStore, redis: RedisServer) -> None:
    key = key_with(requests_per_minute=6)
    for number in range(6):
        await shared.enter(key, str(number))
    assert (await shared.enter(key, "7")).refusal is Refusal.REQUESTS
    with redis_library.Redis.from_url(redis.url) as direct:
        name = f"{{baton:limits:{key.id}}}:requests"
        direct.set(name, int(direct.get(name)) - 11_000_000)
    assert (await shared.enter(key, "8")).refusal is None
    assert (await shared.enter(key, "9")).refusal is Refusal.REQUESTS


async def test_two_gateways_share_and_a_dead_ones_places_come_back(
    shared: RedisLimitStore, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "LEASE_S", 0.2)
    key, other = key_with(concurrent=2), RedisLimitStore(redis.url)
    await shared.enter(key, "a")
    await other.enter(key, "b")
    assert (await other.enter(key, "c")).refusal is Refusal.CONCURRENT
    for _ in range(3):
        await asyncio.sleep(0.1)
        await shared.renew(key, ["a", "never"])
    assert (await shared.enter(key, "c")).refusal is None  # b's gateway said nothing; a is still there
    assert (await shared.enter(key, "d")).refusal is Refusal.CONCURRENT
    await other.close()


async def test_redis_forgets_keys_that_are_not_used(shared: RedisLimitStore, redis: RedisServer) -> None:
    key = key_with(requests_per_minute=60, tokens_per_minute=60, concurrent=1, monthly_tokens=10)
    await shared.enter(key, "a")
    await shared.reserve(key, 5)
    with redis_library.Redis.from_url(redis.url) as direct:
        assert len(direct.keys()) == 4 and all(direct.ttl(name) > 0 for name in direct.scan_iter())


# --- outages -------------------------------------------------------------------------------------------------------


async def test_while_redis_is_away_each_gateway_counts_alone_or_nobody_is_let_in(redis: RedisServer) -> None:
    key = key_with(requests_per_minute=2)
    stores = [RedisLimitStore(redis.url), RedisLimitStore(redis.url)]
    alone, strict = Limiter(stores[0], LOCAL), Limiter(stores[1], REFUSE)
    (await alone.enter(key, "a")).leave()
    redis.kill()
    for request in "bc":
        (await alone.enter(key, request)).leave()
    with pytest.raises(LimitReached):
        await alone.enter(key, "d")
    with pytest.raises(Unavailable, match="Redis is away"):
        await strict.enter(key, "e")
    redis.start()
    async with asyncio.timeout(10):
        while alone._shared_again_at > time.monotonic() or strict._shared_again_at > time.monotonic():
            await asyncio.sleep(0.05)
    with suppress(Unavailable):  # a connection that was broken is found out once
        await strict.enter(key_with(concurrent=1), "f")
    await alone.enter(key_with(concurrent=1), "g")
    strict._shared_again_at = alone._shared_again_at = 0.0
    (await strict.enter(key, "h")).leave()
    (await alone.enter(key, "i")).leave()
    with pytest.raises(LimitReached):
        await strict.enter(key, "j")
    for limiter, store in zip((alone, strict), stores, strict=True):
        await limiter.close()
        await store.close()


async def test_a_redis_that_hangs_delays_one_request_and_not_the_next(
    shared: RedisLimitStore, redis: RedisServer
) -> None:
    key, limiter = key_with(requests_per_minute=10), Limiter(shared, LOCAL)
    (await limiter.enter(key, "a")).leave()
    await limiter.close()
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(5):
            await limiter.enter(key, "b")
        started = time.monotonic()
        for number in range(5):
            await limiter.enter(key, str(number))
        assert time.monotonic() - started < redis_store._ANSWER_S
    finally:
        os.kill(redis.pid, signal.SIGCONT)


class Broken(MemoryStore):
    """Lets requests in, and is gone then."""

    async def reserve(self, key: ApiKey, tokens: int) -> Standing:
        raise StoreUnavailable("Redis: gone")

    async def leave(self, key: ApiKey, request_id: str, reserved: int, used: int) -> None:
        raise StoreUnavailable("Redis: gone")


async def test_an_outage_in_the_middle_of_a_request() -> None:
    limiter = Limiter(Broken(), LOCAL)
    ticket = await limiter.enter(key_with(tokens_per_minute=100), "a")
    await ticket.reserve(80)
    assert ticket.standing.tokens_left == 20
    ticket.settle(80, 30)
    ticket.leave()
    await limiter.close()
    assert ticket.standing.tokens_left == 20 and (await limiter.enter(ticket.key, "b")).standing.tokens_left == 70


# --- clients -------------------------------------------------------------------------------------------------------


def terms(**limits: int) -> tuple[ApiKey, str]:
    return create(KeyTerms(tenant="acme", **limits))


async def test_openai_clients_are_told(router: FakeRouterClient, model: TextModel) -> None:
    key, text = terms(requests_per_minute=2, tokens_per_minute=10_000)
    async with (
        guarded(router, model, key) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=text, max_retries=0) as client,
    ):
        raw = await client.chat.completions.with_raw_response.create(**CHAT)
        usage = raw.parse().usage
        booked = usage.prompt_tokens + CHAT["max_tokens"]
        headers = raw.headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
        assert headers["x-ratelimit-limit-tokens"] == "10000"
        assert 0 <= int(headers["x-ratelimit-remaining-tokens"]) - (10_000 - booked) <= booked
        assert 20 <= int(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
        stream = await client.chat.completions.with_raw_response.create(stream=True, **CHAT)
        assert stream.headers["x-ratelimit-remaining-requests"] == "0"
        async for _ in stream.parse():
            pass
        with pytest.raises(openai.RateLimitError, match="2 requests per minute") as caught:
            await client.chat.completions.create(**CHAT)
    error, headers = caught.value, caught.value.response.headers
    assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert 15 <= int(headers["retry-after"]) <= 30 and "x-request-id" in headers
    assert headers["x-ratelimit-remaining-requests"] == "0"


async def test_anthropic_clients_are_told(router: FakeRouterClient, model: TextModel) -> None:
    key, text = terms(requests_per_minute=1, tokens_per_minute=600)
    async with (
        guarded(router, model, key) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key=text, max_retries=0) as client,
    ):
        raw = await client.messages.with_raw_response.create(**CHAT)
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == "0"
        reset = datetime.fromisoformat(raw.headers["anthropic-ratelimit-requests-reset"])
        assert 50 < reset.timestamp() - time.time() < 61
        assert int(raw.headers["anthropic-ratelimit-tokens-remaining"]) < 600
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(**CHAT)
    assert caught.value.body["error"]["type"] == "rate_limit_error"
    assert int(caught.value.response.headers["retry-after"]) > 50


async def test_ollama_clients_are_told(router: FakeRouterClient, model: TextModel) -> None:
    key, text = terms(requests_per_minute=1)
    headers = {"authorization": f"Bearer {text}"}
    async with guarded(router, model, key) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        body = {"model": "toy", "messages": HELLO, "options": {"num_predict": 2}}
        assert (await http.post("/api/chat", json=body)).status_code == 200
        refused = await http.post("/api/chat", json=body)
        assert refused.status_code == 429 and list(refused.json()) == ["error"] and "retry-after" in refused.headers
        assert (await http.get("/api/tags")).status_code == 200  # looking around is free


async def test_tokens_are_refused_before_the_router_hears_of_them(router: FakeRouterClient, model: TextModel) -> None:
    key, text = terms(tokens_per_minute=100)
    headers = {"authorization": f"Bearer {text}"}
    async with guarded(router, model, key) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        body = {"model": "toy", "prompt": [5] * 10, "max_tokens": 60, "ignore_eos": True}
        router.gate = asyncio.Event()
        running = asyncio.create_task(http.post("/v1/completions", json=body))
        await until(lambda: router.running == 1)
        for stream in (False, True):
            refused = await http.post("/v1/completions", json={**body, "stream": stream})
            assert refused.status_code == 429 and "100 tokens per minute" in refused.text
        router.gate.set()
        assert (await running).json()["usage"]["total_tokens"] == 70
    assert len(router.requests) == 1


async def test_what_was_booked_and_not_used_comes_back(router: FakeRouterClient, model: TextModel) -> None:
    key, text = terms(tokens_per_minute=1_000)
    router.script = router.alphabet[:5]
    headers = {"authorization": f"Bearer {text}"}
    async with guarded(router, model, key) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        for number in range(1, 5):
            body = {"model": "toy", "prompt": [5] * 10, "max_tokens": 900}
            answer = await http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 90 - 15 * (number - 1)


async def test_places_end_with_their_requests_however_those_end(router: FakeRouterClient, model: TextModel) -> None:
    key, text = terms(concurrent=1)
    headers = {"authorization": f"Bearer {text}"}
    body = {"model": "toy", "prompt": [5] * 4, "max_tokens": 4, "stream": True}
    async with guarded(router, model, key) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        router.gate = asyncio.Event()
        left = asyncio.create_task(http.post("/v1/completions", json=body))
        await until(lambda: router.running == 1)
        assert (await http.post("/v1/completions", json=body)).status_code == 429
        left.cancel()
        await until(lambda: router.running == 0)
        router.gate = None
        for wrong in ({"model": "toy"}, {"model": "none", "prompt": "x"}):
            assert (await http.post("/v1/completions", json=wrong)).status_code in (400, 404)
        async with asyncio.timeout(5):
            while (await http.post("/v1/completions", json=body)).status_code != 200:
                await asyncio.sleep(0.01)
        assert (await http.post("/v1/completions", json=body)).status_code == 200


async def test_a_used_up_quota(router: FakeRouterClient, model: TextModel) -> None:
    key, text = terms(monthly_tokens=20)
    async with (
        guarded(router, model, key) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=text, max_retries=0) as client,
    ):
        asked = {"model": "toy", "prompt": [5] * 10, "max_tokens": 10, "extra_body": {"ignore_eos": True}}
        await client.completions.create(**asked)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(**asked)
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    assert math.isclose(int(caught.value.response.headers["retry-after"]), month_left_s(time.time()), abs_tol=60)


async def test_two_gateways_and_one_redis(router: FakeRouterClient, model: TextModel, redis: RedisServer) -> None:
    key, text = terms(requests_per_minute=3)
    headers = {"authorization": f"Bearer {text}"}
    answers, stores = [], []
    for _ in range(2):
        stores.append(RedisLimitStore(redis.url))
        ring = KeyRing(Given(key))
        await ring.refresh()
        app = create_app(make_service(router, model), Access(ring, Limiter(stores[-1])))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as http:
            answers += [(await http.post("/v1/chat/completions", json=CHAT)).status_code for _ in range(2)]
    assert answers == [200, 200, 200, 429]
    for store in stores:
        await store.close()
