"""What the gateway bears: floods, slow and silent clients; what stands around it: CORS, audit log, operators' port."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fake_router import FakeRouterClient, until
from gateway_site import make_service
from test_gateway_keys import ANTHROPIC, CHAT, Given, access_of

from baton.core.errors import ConfigError
from baton.gateway import metrics
from baton.gateway.access import Access
from baton.gateway.app import create_admin_app, create_app
from baton.gateway.auth.key import KeyTerms, create
from baton.gateway.auth.ring import KeyRing
from baton.gateway.drain import DrainFlag
from baton.gateway.http.protocol import ConnectionLimits
from baton.gateway.limits.limiter import Limiter
from baton.gateway.server import listen, serve
from baton.gateway.service import Service
from baton.gateway.text_model import TextModel
from baton.runtime.lifecycle import cancel_and_wait

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


@asynccontextmanager
async def bounded(service: Service, unread_s: float = 60.0, **limits: float) -> AsyncIterator[tuple[str, int]]:
    """A gateway with these limits of connections; yields its address."""
    listener = listen("127.0.0.1", 0, unread_s=unread_s)
    serving = asyncio.create_task(serve(create_app(service), listener, 0.0, ConnectionLimits(**limits)))
    try:
        yield listener.getsockname()
    finally:
        await cancel_and_wait(serving)


async def exchange(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send the parts one after the other, then read until the other side closes."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def refused(limit: str) -> float:
    return metrics.REFUSED_CONNECTIONS.labels(limit)._value.get()


# --- heads and connections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        (POST + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 100) for n in range(100)) + b"\r\n",),
        (POST + b"x-large: " + b"y" * 9_000 + b"\r\n\r\n",),
        (POST + b"x-endless: ", *[b"y" * 1_000] * 9),
        (b"GET /" + b"y" * 9_000, b" HTTP/1.1\r\n\r\n"),
    ],
    ids=["many", "large", "endless", "url"],
)
async def test_large_heads_are_refused(service: Service, parts: tuple[bytes, ...]) -> None:
    before = refused("head")
    async with bounded(service, head_bytes=8_192) as address:
        assert b" 431 " in (await exchange(address, *parts)).split(b"\r\n")[0]
    assert refused("head") == before + 1


async def test_heads_within_the_limit_and_bodies_beyond_it_are_fine(service: Service) -> None:
    body = json.dumps({"model": "toy", "prompt": "word " * 10_000, "max_tokens": 1}).encode()
    async with bounded(service, head_bytes=8_192) as (host, port), httpx.AsyncClient() as http:
        for _ in range(5):  # on one connection
            url = f"http://{host}:{port}/tokenize"
            assert (await http.post(url, content=body, headers={"x-large": "y" * 7_000})).status_code == 200


async def test_slow_heads_are_given_up_and_idle_connections_too(service: Service) -> None:
    before = refused("slow")
    async with bounded(service, head_s=0.2) as address:
        assert await exchange(address, POST, b"x-a: b\r\n") == b""
        assert await exchange(address) == b""
        assert b" 400 " in await exchange(address, POST + b"Content-Length: 2\r\nConnection: close\r\n\r\n", b"{}")
    assert refused("slow") == before + 2


async def test_a_second_request_has_its_own_time(service: Service) -> None:
    async with bounded(service, head_s=0.3) as address:
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(4):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.15)  # idle between requests is no slowness
        writer.write(b"GET /health HTTP/1.1\r\n")
        async with asyncio.timeout(5):
            while await reader.read(1000):
                pass
        writer.close()


async def test_too_many_connections_are_told_so(service: Service) -> None:
    before = refused("connections")
    async with bounded(service, connections=3) as address:
        held = [await asyncio.open_connection(*address) for _ in range(3)]
        for reader, writer in held:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in await reader.readline()
        assert b" 503 " in (await exchange(address)).split(b"\r\n")[0]
        held[0][1].close()
        await held[0][1].wait_closed()
        async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as http:
            async with asyncio.timeout(5):
                while (await http.get("/health")).status_code != 200:
                    await asyncio.sleep(0.01)
        for _, writer in held[1:]:
            writer.close()
    assert refused("connections") >= before + 1


async def test_a_client_that_takes_nothing_of_a_whole_answer_is_given_up(
    router: FakeRouterClient, model: TextModel
) -> None:
    """The answer is larger than all buffers, and no stream that could stop producing it."""
    service = make_service(router, model)
    async with bounded(service, unread_s=0.5) as address:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
        body = json.dumps({"model": "toy", "prompt": [5] * 4, "max_tokens": 3_000, "logprobs": 20, "ignore_eos": True})
        request = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body.encode()
        await asyncio.get_running_loop().sock_sendall(connection, request)
        await until(lambda: router.sent == 3_000)
        async with asyncio.timeout(20):
            while connection.fileno() >= 0 and not _is_dead(connection):
                await asyncio.sleep(0.05)
        connection.close()


def _is_dead(connection: socket.socket) -> bool:
    """Whether the other side has reset it: sending to it says so, reading would take its bytes."""
    try:
        connection.send(b"x")
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


async def test_half_closed_connections_leave_nothing_behind(router: FakeRouterClient, service: Service) -> None:
    router.gate = asyncio.Event()
    async with bounded(service) as address:
        reader, writer = await asyncio.open_connection(*address)
        body = json.dumps({"model": "toy", "prompt": [5] * 4, "max_tokens": 30}).encode()
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: router.running == 1)
        writer.write_eof()
        await until(lambda: router.running == 0)
        assert await reader.read() == b""
        writer.close()


# --- web pages -----------------------------------------------------------------------------------------------------


async def test_web_pages_may_ask_only_where_the_operator_says_so(router: FakeRouterClient, model: TextModel) -> None:
    key, text = create(KeyTerms(tenant="acme", requests_per_minute=5))
    asks = {"origin": "https://ours.example", "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    for origins, allowed in (((), False), (("https://ours.example",), True), (("https://other.example",), False)):
        app = create_app(make_service(router, model, cors_origins=origins), await access_of(key))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            preflight = await http.options("/tokenize", headers=asks)
            assert (preflight.headers.get("access-control-allow-origin") == "https://ours.example") == allowed
            headers = {"origin": "https://ours.example", "authorization": f"Bearer {text}"}
            answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 200 and ("access-control-allow-origin" in answer.headers) == allowed
            if allowed:
                assert preflight.status_code == 200
                assert "x-ratelimit-remaining-requests" in answer.headers["access-control-expose-headers"]


# --- the audit log -------------------------------------------------------------------------------------------------


async def audited(router: FakeRouterClient, model: TextModel, path: Path, **settings: object) -> list[dict]:
    key, text = create(KeyTerms(tenant="acme"))
    ring = KeyRing(Given(key))
    await ring.refresh()
    service = make_service(router, model, audit_log=str(path), **settings)
    app = create_app(service, Access(ring, Limiter()))
    transport = httpx.ASGITransport(app, client=("10.1.2.3", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        headers = {"authorization": f"Bearer {text}", "x-request-id": "mine"}
        await http.post("/v1/chat/completions", json=CHAT, headers=headers)
        await http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers)
        await http.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer wrong"})
        await http.post("/v1/messages", json={"model": "toy"}, headers={**headers, **ANTHROPIC})
        await http.get("/health")
    return lines_of(path)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_audit_log_says_who_asked_for_what_and_not_what_was_said(
    router: FakeRouterClient, model: TextModel, tmp_path: Path
) -> None:
    entries = await audited(router, model, tmp_path / "audit.log")
    assert [entry["status"] for entry in entries] == [200, 200, 401, 400]
    whole, stream, stranger, wrong = entries
    assert {name: whole[name] for name in ("request_id", "client", "tenant", "method", "path", "model")} == {
        "request_id": "mine", "client": "10.1.2.3", "tenant": "acme", "method": "POST",
        "path": "/v1/chat/completions", "model": "toy",
    }  # fmt: skip
    assert len(whole["key"]) == 10 and whole["prompt_tokens"] > 0 and whole["completion_tokens"] == 3
    assert stream["completion_tokens"] == 3 and stream["seconds"] >= 0
    assert "tenant" not in stranger and "Incorrect API key" in stranger["error"]
    assert "messages" in wrong["error"]
    assert "Hello" not in (tmp_path / "audit.log").read_text()


async def test_prompts_are_written_where_the_operator_wants_them(
    router: FakeRouterClient, model: TextModel, tmp_path: Path
) -> None:
    entries = await audited(router, model, tmp_path / "audit.log", audit_bodies=True)
    assert json.loads(entries[0]["body"])["messages"] == CHAT["messages"]
    assert entries[2]["body"] == ""  # nobody reads what a stranger sends


async def test_an_audit_log_may_be_moved_away(router: FakeRouterClient, model: TextModel, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    app = create_app(make_service(router, model, audit_log=str(path)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        for number in range(2):
            await http.get("/v1/models")
            path.rename(tmp_path / f"audit.{number}")
    assert [len((tmp_path / f"audit.{number}").read_text().splitlines()) for number in range(2)] == [1, 1]


def test_an_audit_log_that_cannot_be_written(router: FakeRouterClient, model: TextModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write the audit log"):
        create_app(make_service(router, model, audit_log=str(tmp_path / "none" / "audit.log")))


# --- the operators' port -------------------------------------------------------------------------------------------


def client_of(app: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_operators_pages_leave_the_public_port(router: FakeRouterClient, model: TextModel) -> None:
    service = make_service(router, model, metrics_port=9)
    async with client_of(create_app(service)) as public, client_of(create_admin_app(service)) as operators:
        for path in ("/metrics", "/v1/loads", "/"):
            assert (await public.get(path)).status_code == 404
            assert (await operators.get(path)).status_code == 200
        for path in ("/health", "/ready"):
            assert (await public.get(path)).status_code == (await operators.get(path)).status_code == 200
        assert (await operators.get("/v1/models")).status_code == 404
        assert (await public.post("/drain")).status_code == 404


async def test_tenants_are_no_operators(router: FakeRouterClient, model: TextModel) -> None:
    key, text = create(KeyTerms(tenant="acme"))
    app = create_app(make_service(router, model), await access_of(key))
    async with client_of(app) as http:
        for path in ("/metrics", "/v1/loads", "/"):
            assert (await http.get(path, headers={"x-api-key": text})).status_code == 404


async def test_draining(router: FakeRouterClient, model: TextModel, tmp_path: Path) -> None:
    """Also of a process whose neighbour was told, by their marker."""
    neighbours = [
        Service(router, model, "toy", make_service(router, model).settings, DrainFlag(tmp_path / "marker"))
        for _ in range(2)
    ]
    async with client_of(create_admin_app(neighbours[0])) as operators, client_of(create_app(neighbours[1])) as public:
        assert (await operators.post("/drain")).json() == {"draining": True}
        refused = await public.get("/ready")
        assert refused.status_code == 503 and "draining" in refused.text
        assert (await public.get("/health")).status_code == 200
        assert (await public.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await operators.delete("/drain")).json() == {"draining": False}
        assert (await public.get("/ready")).status_code == 200
