"""API keys: how they are kept, who is let in, and what clients of each API are told."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anthropic
import httpx
import msgspec
import ollama
import openai
import pytest
import structlog
from fake_router import FakeRouterClient
from gateway_site import make_service

from baton.cli import keys as keys_command
from baton.core.errors import ConfigError, StoreUnavailable, Unauthenticated, Unavailable
from baton.gateway.access import Access, open_access
from baton.gateway.app import create_app
from baton.gateway.auth.key import ApiKey, KeyTerms, create, split
from baton.gateway.auth.key_file import KeyFile
from baton.gateway.auth.key_store import KeyStore
from baton.gateway.auth.ring import FileSource, KeyRing
from baton.gateway.limits.limiter import Limiter
from baton.gateway.server import listen, serve
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel
from baton.runtime.lifecycle import cancel_and_wait
from baton.testing.redis_server import RedisServer, find_redis_server

ANTHROPIC = {"anthropic-version": "2023-06-01"}
HELLO = [{"role": "user", "content": "Hello there."}]
CHAT = {"model": "toy", "messages": HELLO, "max_tokens": 3}


class Given:
    """Keys that change when a test says so."""

    def __init__(self, *keys: ApiKey) -> None:
        self.keys: list[ApiKey] | None = list(keys)
        self.error: Exception | None = None

    async def changed(self) -> list[ApiKey] | None:
        if self.error is not None:
            raise self.error
        return self.keys


async def access_of(*keys: ApiKey) -> Access:
    ring = KeyRing(Given(*keys))
    await ring.refresh()
    return Access(ring, Limiter())


@asynccontextmanager
async def guarded(router: FakeRouterClient, model: TextModel, *keys: ApiKey) -> AsyncIterator[str]:
    """A gateway that asks for `keys`, on a real server. Yields its URL."""
    service = make_service(router, model, aliases=("other",))
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(serve(create_app(service, await access_of(*keys)), listener, 0.0))
    yield "http://{}:{}".format(*listener.getsockname())
    await cancel_and_wait(serving)


# --- one key -------------------------------------------------------------------------------------------------------


def test_a_key_is_recognised_and_not_stored() -> None:
    key, text = create(KeyTerms(tenant="acme"))
    id, secret = split(text)
    assert id == key.id and key.opens_with(secret)
    assert secret not in msgspec.json.encode(key).decode()
    flipped = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    assert not key.opens_with(flipped) and not key.opens_with("")
    again, _ = create(KeyTerms(tenant="acme"))
    assert again.id != key.id and again.salt != key.salt and again.digest != key.digest


@pytest.mark.parametrize("text", ["", "sk-proj-1", "sk-baton-0-0", f"sk-baton-{'0' * 10}-{'G' * 48}", "é" * 99])
def test_other_texts_are_no_keys(text: str) -> None:
    assert split(text) is None


@pytest.mark.parametrize("terms", [{"tenant": ""}, {"tenant": "a b"}, {"tenant": "a", "concurrent": -1},
                                   {"tenant": "a", "cache_group": "x" * 65}])  # fmt: skip
def test_impossible_terms(terms: dict) -> None:
    with pytest.raises(msgspec.ValidationError):
        create(KeyTerms(**terms))


# --- where keys are kept -------------------------------------------------------------------------------------------


def test_a_key_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    with pytest.raises(ConfigError, match=r"keys\.json: No such file"):
        file.read()
    first, second = (create(KeyTerms(tenant=name, models=("toy",)))[0] for name in "ab")
    file.add(first)
    file.add(second)
    assert file.read() == [first, second] == file.changed() and file.changed() is None
    assert (file.path.stat().st_mode & 0o777, os.listdir(tmp_path)) == (0o600, ["keys.json"])
    assert file.remove(first.id) and not file.remove(first.id)
    assert file.changed() == [second]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"keys": [{}]}', b'{"keys": [{"id": 5}]}', b"\xff\xfe"])
def test_a_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no file of API keys"):
        KeyFile(path).read()


async def test_a_changed_file_counts_without_a_restart_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    (old, old_text), (new, new_text) = (create(KeyTerms(tenant=name)) for name in ("old", "new"))
    file.add(old)
    ring = KeyRing(FileSource(file.path))
    with pytest.raises(Unavailable):
        ring.find(old_text)
    await ring.refresh()
    assert ring.find(old_text) == old
    file.add(new)
    file.remove(old.id)
    await ring.refresh()
    assert ring.find(new_text) == new
    with pytest.raises(Unauthenticated, match="Incorrect"):
        ring.find(old_text)
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-20])
    await ring.refresh()
    assert ring.find(new_text) == new
    file.path.write_bytes(content)
    await ring.refresh()
    assert ring.find(new_text) == new


async def test_an_expired_key_and_another_ones_secret() -> None:
    past, past_text = create(KeyTerms(tenant="a", expires_at=int(time.time()) - 5))
    key, text = create(KeyTerms(tenant="a", expires_at=int(time.time()) + 500))
    ring = (await access_of(past, key)).ring
    assert ring.find(text) == key
    with pytest.raises(Unauthenticated, match="expired"):
        ring.find(past_text)
    for wrong in (f"sk-baton-{key.id}-{past_text[-48:]}", f"sk-baton-{'0' * 10}-{text[-48:]}", "", "x"):
        with pytest.raises(Unauthenticated, match="Incorrect"):
            ring.find(wrong)


async def test_keys_in_redis_and_its_outage(tmp_path: Path) -> None:
    with RedisServer(find_redis_server(), tmp_path / "redis.sock") as redis:
        async with AsyncExitStack() as stack:
            store, writer = KeyStore(redis.url), KeyStore(redis.url)
            stack.push_async_callback(store.close)
            stack.push_async_callback(writer.close)
            ring = KeyRing(store)
            key, text = create(KeyTerms(tenant="a", requests_per_minute=5))
            await ring.refresh()
            with pytest.raises(Unauthenticated):
                ring.find(text)
            await writer.add(key)
            await ring.refresh()
            assert ring.find(text) == key and await store.changed() is None
            redis.kill()
            with pytest.raises(StoreUnavailable):
                await writer.add(key)
            await ring.refresh()
            assert ring.find(text) == key
            redis.start()
            await writer.add(key)
            assert await writer.remove(key.id) and not await writer.remove(key.id)
            await ring.refresh()
            with pytest.raises(Unauthenticated):
                ring.find(text)


async def test_a_gateway_that_never_could_read_its_keys_lets_nobody_in(
    router: FakeRouterClient, model: TextModel
) -> None:
    source = Given()
    source.error = StoreUnavailable("Redis: gone")
    ring = KeyRing(source)
    await ring.refresh()
    app = create_app(make_service(router, model), Access(ring, Limiter()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        refused = await http.post("/v1/chat/completions", json=CHAT, headers={"x-api-key": "sk-any"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "settings, words", [({"api_keys": "redis"}, "--redis-url"), ({"api_keys": "/nowhere/keys.json"}, "/nowhere")]
)
async def test_keys_that_cannot_be_had_are_an_error_at_start(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        async with open_access(GatewaySettings(**settings)):
            pass


@pytest.mark.parametrize(
    "host, warned", [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("10.0.0.7", True)]
)
async def test_listening_for_everybody_without_keys_is_told(host: str, warned: bool) -> None:
    with structlog.testing.capture_logs() as logs:
        async with open_access(GatewaySettings(host=host)) as access:
            assert access is None
    assert any("anybody who reaches this port" in line["event"] for line in logs) == warned


# --- clients -------------------------------------------------------------------------------------------------------


async def test_openai_clients(router: FakeRouterClient, model: TextModel) -> None:
    key, text = create(KeyTerms(tenant="acme"))
    async with guarded(router, model, key) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=text, max_retries=0) as client:
            assert (await client.chat.completions.create(**CHAT)).usage.completion_tokens == 3
            assert [entry.id async for entry in client.models.list()] == ["toy", "other"]
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.chat.completions.create(**CHAT)
    assert caught.value.code == "invalid_api_key" and "Incorrect API key" in caught.value.message
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert router.requests[0].tenant == "acme" and len(router.requests) == 1


async def test_anthropic_clients(router: FakeRouterClient, model: TextModel) -> None:
    key, text = create(KeyTerms(tenant="acme"))
    async with guarded(router, model, key) as url:
        for credentials in ({"api_key": text}, {"auth_token": text}):
            async with anthropic.AsyncAnthropic(base_url=url, max_retries=0, **credentials) as client:
                answer = await client.messages.create(**CHAT)
                assert answer.usage.output_tokens == 3
        async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                await client.messages.create(**CHAT)
    assert caught.value.body["error"]["type"] == "authentication_error"


async def test_ollama_clients(router: FakeRouterClient, model: TextModel) -> None:
    key, text = create(KeyTerms(tenant="acme"))
    async with guarded(router, model, key) as url:
        client = ollama.AsyncClient(url, headers={"Authorization": f"Bearer {text}"})
        assert (await client.chat("toy", HELLO, options={"num_predict": 3})).eval_count == 3
        with pytest.raises(ollama.ResponseError, match="didn't provide an API key") as caught:
            await ollama.AsyncClient(url, headers={"Authorization": ""}).chat("toy", HELLO)
    assert caught.value.status_code == 401


async def test_a_key_for_some_models(router: FakeRouterClient, model: TextModel) -> None:
    key, text = create(KeyTerms(tenant="acme", models=("other",)))
    long = {**CHAT, "messages": [{"role": "user", "content": "word " * 5_000}]}  # parsed on a thread
    headers = {"authorization": f"Bearer {text}"}
    async with guarded(router, model, key) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [entry["id"] for entry in listed] == ["other"]
        assert (await http.post("/v1/chat/completions", json={**CHAT, "model": "other"})).status_code == 200
        for path, body in {
            "/v1/chat/completions": CHAT, "/v1/messages": CHAT, "/api/chat": CHAT, "/v1/completions":
            {"model": "toy", "prompt": "x"}, "/tokenize": {"model": "toy", "prompt": "x"},
        }.items():  # fmt: skip
            refused = await http.post(path, json=body, headers=ANTHROPIC if "messages" in path else {})
            assert refused.status_code == 403 and "access to the model 'toy'" in refused.text, refused.text
        assert (await http.post("/v1/chat/completions", json=long)).status_code == 403
        unknown = await http.post("/v1/chat/completions", json={**CHAT, "model": "secret"})
        assert unknown.status_code == 404 and "'toy'" not in unknown.text
        anthropics = await http.post("/v1/messages", json=CHAT, headers=ANTHROPIC)
        assert anthropics.json()["error"]["type"] == "permission_error"
    assert len(router.requests) == 1


async def test_what_needs_no_key(router: FakeRouterClient, model: TextModel) -> None:
    key, _ = create(KeyTerms(tenant="acme"))
    async with guarded(router, model, key) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/health")).status_code == (await http.get("/ready")).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing", "/"):
            assert (await http.get(path)).status_code == 401, path


async def test_a_refused_request_costs_no_body(router: FakeRouterClient, model: TextModel) -> None:
    """The answer is there before the body is: nobody without a key can make the gateway hold it."""
    key, _ = create(KeyTerms(tenant="acme"))
    async with guarded(router, model, key) as url:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
        async with asyncio.timeout(5):
            assert b"401" in await reader.readline()
        writer.close()


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    where = ["--api-keys", str(path)]
    keys_command.main(["create", *where, "--tenant", "acme", "--models", "toy,other", "--tokens-per-minute", "500",
                       "--concurrent", "2", "--cache-group", "shared", "--days", "1", "--label", "tests"])  # fmt: skip
    text = capsys.readouterr().out.strip()
    [key] = KeyFile(path).read()
    id, secret = split(text)
    assert key.id == id and key.opens_with(secret) and key.models == ("toy", "other") and key.cache_group == "shared"
    assert (key.tokens_per_minute, key.concurrent, key.requests_per_minute) == (500, 2, 0)
    assert 86_000 < key.expires_at - time.time() < 86_500
    keys_command.main(["list", *where])
    table = capsys.readouterr().out
    assert id in table and "500 tokens/min, 2 at once" in table and "tests" in table and secret not in table
    assert key.digest not in table
    keys_command.main(["revoke", *where, id])
    assert KeyFile(path).read() == []
    with pytest.raises(ConfigError, match="no API key"):
        keys_command.main(["revoke", *where, id])


def test_the_command_with_redis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RedisServer(find_redis_server(), tmp_path / "redis.sock") as redis:
        where = ["--api-keys", "redis", "--redis-url", redis.url]
        keys_command.main(["create", *where, "--tenant", "acme"])
        id, _ = split(capsys.readouterr().out.strip())
        keys_command.main(["list", *where])
        assert id in capsys.readouterr().out
        keys_command.main(["revoke", *where, id])
        keys_command.main(["list", *where])
        assert id not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["list"], "--api-keys"),
        (["create", "--api-keys", "x"], "--tenant"),
        (["create", "--api-keys", "x", "--tenant", "a b"], "such a key cannot be"),
        (["list", "--api-keys", "redis"], "--redis-url"),
        (["shred"], "invalid choice"),
    ],
)
def test_what_the_command_needs(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        keys_command.main(arguments)
