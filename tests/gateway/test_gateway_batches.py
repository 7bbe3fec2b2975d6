"""Files and batches through the openai package, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest
from fake_router import FakeRouterClient, until
from gateway_site import make_service
from test_gateway_pooling import PoolingRouter

from baton.core.errors import ConfigError, InvalidRequest, Unavailable
from baton.gateway.access import Access
from baton.gateway.app import create_app
from baton.gateway.auth.key import KeyTerms, create
from baton.gateway.auth.ring import KeyRing
from baton.gateway.limits.limiter import Limiter
from baton.gateway.openai.batches import lanes, run, runner
from baton.gateway.openai.batches.lines import Journal, count_lines, read_lines
from baton.gateway.openai.batches.runner import BatchRunner
from baton.gateway.openai.files import upload
from baton.gateway.service import Service
from baton.gateway.text_model import TextModel
from baton.runtime.lifecycle import cancel_and_wait

OVER = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_SCAN_S", 0.005)
    monkeypatch.setattr(run, "_LOOK_S", 0.005)
    monkeypatch.setattr(lanes, "_LONGEST_WAIT_S", 0.01)


@pytest.fixture
def service(router: FakeRouterClient, model: TextModel, tmp_path: Path) -> Service:
    return make_service(router, model, files_dir=str(tmp_path), files_bytes=1 << 20, max_body_bytes=4096)


@asynccontextmanager
async def running(service: Service, access: Access | None = None) -> AsyncIterator[None]:
    task = asyncio.create_task(BatchRunner(service, access).run())
    try:
        yield
    finally:
        await cancel_and_wait(task)


@pytest.fixture
async def client(
    service: Service, start: Callable[..., AbstractAsyncContextManager[str]]
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with start(service) as url:
        options = {"max_retries": 0, "timeout": 30, "_strict_response_validation": True}
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", **options) as made:
            yield made


def line(number: int, url: str = "/v1/completions", **fields: object) -> dict:
    body = {"model": "toy", "prompt": f"Number {number}", "max_tokens": 4, "temperature": 0, **fields}
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}


def jsonl(*lines: object) -> bytes:
    return b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in lines)


async def submit(client: openai.AsyncOpenAI, content: bytes, endpoint: str = "/v1/completions") -> str:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    assert batch.status == "validating"
    return batch.id


async def finished(client: openai.AsyncOpenAI, id: str) -> openai.types.Batch:
    async with asyncio.timeout(20):
        while (batch := await client.batches.retrieve(id)).status not in OVER:
            await asyncio.sleep(0.01)
    return batch


async def entries(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str | None, dict]:
    if file_id is None:
        return {}
    found = [json.loads(text) for text in (await client.files.content(file_id)).text.splitlines()]
    assert len({entry["id"] for entry in found}) == len(found)
    return {entry["custom_id"]: entry for entry in found}


# --- files ------------------------------------------------------------------------------------------------------------


async def test_files(client: openai.AsyncOpenAI) -> None:
    content = os.urandom(100_000)
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("in.jsonl", 100_000, "batch", "processed")
    assert await client.files.retrieve(file.id) == file
    assert (await client.files.content(file.id)).content == content
    second = await client.files.create(
        file=("b.jsonl", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert second.expires_at == second.created_at + 3600
    assert {each.id async for each in client.files.list()} == {file.id, second.id}
    assert [each.id async for each in client.files.list(purpose="batch_output")] == []
    assert (await client.files.delete(file.id)).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            await call(file.id)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve("..%2f..%2fetc")


async def test_files_that_are_refused(client: openai.AsyncOpenAI, service: Service, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.files.create(file=("in.jsonl", b"x"), purpose="assistants")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.APIStatusError) as caught:
        await client.files.create(file=("in.jsonl", b"x" * (2 << 20)), purpose="batch")
    assert caught.value.status_code == 413
    expiry = {"anchor": "created_at", "seconds": 60}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.files.create(file=("in.jsonl", b"x"), purpose="batch", expires_after=expiry)
    assert caught.value.param == "expires_after.seconds"
    async with httpx.AsyncClient(base_url=str(client.base_url)) as http:
        for sent in (
            {"json": {}},
            {"data": {"purpose": "batch"}, "files": {"other": b"x"}},
            {"data": {"file": "text"}},
        ):
            assert (await http.post("files", **sent)).json()["error"]["param"] == "file"
        torn = {"content-type": "multipart/form-data; boundary=b"}
        assert (await http.post("files", headers=torn, content=b"no form")).status_code == 400
    assert list((tmp_path / "files").iterdir()) == []


async def test_an_upload_that_falls_silent(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_SILENCE_S", 0.05)
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n"
        b"content-type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nxyz'
    )
    assert b" 400 " in await reader.readline()
    writer.close()
    assert list((tmp_path / "files").iterdir()) == []


async def test_the_folder_has_a_limit_and_expired_files_go(
    client: openai.AsyncOpenAI, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = await client.files.create(file=("a", b"x" * 700_000), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="room"):
        await client.files.create(file=("b", b"x" * 700_000), purpose="batch")
    late = time.time() + service.settings.files_ttl_s + 1
    monkeypatch.setattr(time, "time", lambda: late)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(first.id)
    async with running(service):
        await until(lambda: not list((tmp_path / "files").iterdir()))
    await client.files.create(file=("b", b"x" * 700_000), purpose="batch")


async def test_without_a_folder(url: str, router: FakeRouterClient, model: TextModel) -> None:
    transport = httpx.ASGITransport(create_app(make_service(router, model)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/v1") as http:
        assert [(await http.get(path)).status_code for path in ("/files", "/batches", "/batches/a")] == [501] * 3
    with pytest.raises(ConfigError):
        BatchRunner(make_service(router, model, files_dir="/dev/null/none"))


# --- batches ----------------------------------------------------------------------------------------------------------


async def test_a_batch_answers_as_the_endpoint_does(client: openai.AsyncOpenAI, service: Service) -> None:
    """A bad line is an error line, and costs nothing else."""
    bad = [
        b"no json\n", b"[1]\n", b"\xff\xfe\n", b"\n", {"custom_id": 3}, line(1), line(10, url="/v1/models"),
        line(11) | {"method": "GET"}, line(12) | {"body": 4}, line(13, stream=True), line(14, max_tokens="x"),
        line(15, model="none"), line(16, prompt="x" * 5000),
    ]  # fmt: skip
    id = await submit(client, jsonl(line(0), line(1), *bad, line(2)))
    async with running(service):
        batch = await finished(client, id)
    assert batch.status == "completed" and batch.errors is None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (15, 3, 12)
    good = await entries(client, batch.output_file_id)
    for number in range(3):
        answer = await client.completions.create(**line(number)["body"])
        body = good[f"r{number}"]["response"]["body"]
        assert body["choices"][0]["text"] == answer.choices[0].text and good[f"r{number}"]["error"] is None
        assert good[f"r{number}"]["response"]["status_code"] == 200
    failed = [json.loads(text) for text in (await client.files.content(batch.error_file_id)).text.splitlines()]
    assert len(failed) == 12 and sum(entry["custom_id"] is None for entry in failed) == 5
    by_id = {entry["custom_id"]: entry for entry in failed}
    assert by_id["r14"]["response"]["body"]["error"]["param"] == "max_tokens"
    assert by_id["r15"]["response"]["status_code"] == 404
    assert "used before" in by_id["r1"]["error"]["message"] and "streamed" in by_id["r13"]["error"]["message"]
    file = await client.files.retrieve(batch.output_file_id)
    assert file.purpose == "batch_output" and [each.id async for each in client.batches.list()] == [id]


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/responses", {"input": "Hi", "store": False, "max_output_tokens": 4, "prompt": None}),
    ],
)
async def test_other_endpoints(client: openai.AsyncOpenAI, service: Service, url: str, fields: dict) -> None:
    id = await submit(client, jsonl(line(0, url, **fields)), url)
    async with running(service):
        batch = await finished(client, id)
    assert batch.request_counts.completed == 1
    body = (await entries(client, batch.output_file_id))["r0"]["response"]["body"]
    assert body["object"] in ("chat.completion", "response")


async def test_embeddings(
    model: TextModel, start: Callable[..., AbstractAsyncContextManager[str]], tmp_path: Path
) -> None:
    """Each is what the endpoint answers; a text that is too long is an error line."""
    service = make_service(PoolingRouter(), model, files_dir=str(tmp_path))
    await service.catalog.refresh()
    bodies = {"a": {"input": "One"}, "b": {"input": ["Two", "Three"], "dimensions": 4}, "c": {"input": "x y " * 200}}
    lines = [
        {"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": {"model": "toy", **body}}
        for id, body in bodies.items()
    ]
    async with start(service) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        id = await submit(client, jsonl(*lines), "/v1/embeddings")
        async with running(service):
            batch = await finished(client, id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
        for custom_id, entry in (await entries(client, batch.output_file_id)).items():
            own = await client.embeddings.create(model="toy", encoding_format="float", **bodies[custom_id])
            assert entry["response"]["body"] == own.model_dump()
        (failed,) = (await entries(client, batch.error_file_id)).values()
        assert failed["custom_id"] == "c" and failed["response"]["status_code"] == 400


async def test_few_run_at_a_time_and_after_everybody_else(
    client: openai.AsyncOpenAI, service: Service, router: FakeRouterClient
) -> None:
    router.gate = asyncio.Event()
    ids = [await submit(client, jsonl(*map(line, range(30)))) for _ in range(2)]
    async with running(service):
        await until(lambda: router.running == service.settings.batch_concurrency)
        await asyncio.sleep(0.05)
        assert router.running == service.settings.batch_concurrency
        assert {request.priority for request in router.requests} == {-1}
        router.gate.set()
        for id in ids:
            assert (await finished(client, id)).request_counts.completed == 30


async def test_a_batch_goes_on_after_its_gateway_was_killed(
    client: openai.AsyncOpenAI, service: Service, router: FakeRouterClient, model: TextModel, tmp_path: Path
) -> None:
    """No line is lost and none is answered twice, though the uploaded file is gone, and the journal has a torn end."""
    router.gate = asyncio.Event()
    id = await submit(client, jsonl(*map(line, range(40)), b"bad\n"))
    await client.files.delete((await client.batches.retrieve(id)).input_file_id)
    journal = tmp_path / "batches" / id / "journal.jsonl"
    async with running(service):
        await until(lambda: router.running == 8)
        router.gate.set()
        await until(lambda: journal.read_bytes().count(b"\n") >= 10)
        router.gate.clear()
        killed = journal.read_bytes()
    answered = [json.loads(text)["entry"] for text in killed.splitlines()]
    journal.write_bytes(killed + b'{"line": 39, "ok": tr')
    router.gate.set()
    again = make_service(router, model, files_dir=str(tmp_path))
    async with running(again):
        batch = await finished(client, id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (40, 1)
    good = await entries(client, batch.output_file_id)
    assert set(good) == {f"r{number}" for number in range(40)}
    assert all(entry == good[entry["custom_id"]] for entry in answered if entry["error"] is None)
    assert sorted(path.name for path in (tmp_path / "batches" / id).iterdir()) == ["batch.json", "lock"]


async def test_two_gateways_do_not_run_one_batch(
    client: openai.AsyncOpenAI, service: Service, router: FakeRouterClient, model: TextModel, tmp_path: Path
) -> None:
    id = await submit(client, jsonl(*map(line, range(50))))
    async with running(service), running(make_service(router, model, files_dir=str(tmp_path))):
        batch = await finished(client, id)
    assert batch.request_counts.completed == 50 == len(router.requests)


async def test_cancelling(client: openai.AsyncOpenAI, service: Service, router: FakeRouterClient) -> None:
    """What has been answered is in the files."""
    id = await submit(client, jsonl(*map(line, range(40))))
    router.gate = asyncio.Event()
    async with running(service):
        await until(lambda: router.running == 8)
        router.gate.set()
        await until(lambda: router.sent >= 40)
        router.gate.clear()
        batch = await client.batches.cancel(id)
        assert batch.status == "cancelling" and batch.cancelling_at is not None
        batch = await finished(client, id)
    assert batch.status == "cancelled" and router.running == 0
    assert 0 < batch.request_counts.completed < 40 and batch.request_counts.failed == 0
    assert len(await entries(client, batch.output_file_id)) == batch.request_counts.completed
    with pytest.raises(openai.BadRequestError):
        await client.batches.cancel(id)


async def test_a_batch_that_nobody_runs_can_be_cancelled(client: openai.AsyncOpenAI, service: Service) -> None:
    id = await submit(client, jsonl(line(0)))
    assert (await client.batches.cancel(id)).status == "cancelling"
    assert (await client.batches.retrieve(id)).status == "cancelling"
    async with running(service):
        batch = await finished(client, id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)


async def test_expiry(
    client: openai.AsyncOpenAI, service: Service, router: FakeRouterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await submit(client, jsonl(*map(line, range(20))))
    router.gate = asyncio.Event()
    async with running(service):
        await until(lambda: router.running == 8)
        late = time.time() + 24 * 3600
        monkeypatch.setattr(time, "time", lambda: late)
        batch = await finished(client, id)
    assert (batch.status, batch.request_counts.failed) == ("expired", 20) and router.running == 0
    failed = await entries(client, batch.error_file_id)
    assert {entry["error"]["code"] for entry in failed.values()} == {"batch_expired"} and len(failed) == 20


async def test_lines_wait_while_nobody_can_answer(
    client: openai.AsyncOpenAI, service: Service, router: FakeRouterClient
) -> None:
    router.down = Unavailable("no worker")
    id = await submit(client, jsonl(*map(line, range(10))))
    async with running(service):
        await until(lambda: len(router.requests) >= 20)
        router.down = None
        batch = await finished(client, id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (10, 0)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
async def test_an_input_without_requests(client: openai.AsyncOpenAI, service: Service, content: bytes) -> None:
    id = await submit(client, content)
    async with running(service):
        batch = await finished(client, id)
    assert batch.status == "failed" and batch.errors.data[0].code == "empty_file"


async def test_wrong_batches(client: openai.AsyncOpenAI, service: Service) -> None:
    file = await client.files.create(file=("in.jsonl", jsonl(line(0))), purpose="batch")
    right = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    for wrong in ({"input_file_id": "file-1"}, {"endpoint": "/v1/models"}, {"completion_window": "1h"},
                  {"metadata": {"a": "x" * 600}}):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            await client.batches.create(**{**right, **wrong})
        assert caught.value.param.split(".")[0] == next(iter(wrong))
    for id in ("batch_1", "..%2f"):
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve(id)


async def test_tenants_and_their_limits(
    service: Service, router: FakeRouterClient, start: Callable[..., AbstractAsyncContextManager[str]]
) -> None:
    """Lines count for the key that asked, and wait for its limits; other tenants see nothing; a revoked key ends it."""
    keys = {name: create(KeyTerms(tenant=name, concurrent=2 if name == "a" else 0)) for name in ("a", "b")}

    class Given:
        async def changed(self) -> list | None:
            return [key for key, _ in keys.values()]

    ring = KeyRing(Given())
    await ring.refresh()
    access = Access(ring, Limiter())
    transport = httpx.ASGITransport(create_app(service, access))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/v1") as http:

        async def call(name: str, method: str, path: str, **sent: object) -> dict:
            headers = {"authorization": f"Bearer {keys[name][1]}"}
            return (await http.request(method, path, headers=headers, **sent)).json()

        upload = {"files": {"file": jsonl(*map(line, range(12)))}, "data": {"purpose": "batch"}}
        file = await call("a", "POST", "/files", **upload)
        order = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        assert (await call("b", "POST", "/batches", json=order))["error"]["param"] == "input_file_id"
        id = (await call("a", "POST", "/batches", json=order))["id"]
        assert (await call("b", "GET", f"/batches/{id}"))["error"]["code"] == "not_found"
        assert (await call("b", "GET", "/batches"))["data"] == (await call("b", "GET", "/files"))["data"] == []
        router.gate = asyncio.Event()
        async with running(service, access):
            await until(lambda: router.running == 2)
            assert {request.tenant for request in router.requests} == {"a"}
            router.gate.set()
            while (batch := await call("a", "GET", f"/batches/{id}"))["status"] != "completed":
                assert router.running <= 2
                await asyncio.sleep(0.01)
            assert batch["request_counts"]["completed"] == 12
            second = (await call("a", "POST", "/batches", json=order))["id"]
            del keys["a"]
            await ring.refresh()
            until_over = BatchRunner(service)._batches
            await until(lambda: until_over.load(second).status == "completed")
            assert until_over.load(second).failed > 0


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(jsonl(line(0), b"   \n", b"x" * 300 + b"\n", line(1))[:-1])
    found = list(read_lines(path, "/v1/completions", 200))
    assert [(each.number, each.custom_id) for each in found] == [(1, "r0"), (3, None), (4, "r1")]
    assert count_lines(path) == 3


def test_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(1, {"a": 1}, ok=True)
    journal.add(3, {"b": 2}, ok=False)
    journal.close()
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"line": 5')
    again = Journal(tmp_path / "j")
    assert (again.done, again.completed, again.failed) == ({1, 3}, 1, 1)
    again.add(4, {"c": 3}, ok=True)
    again.split(tmp_path / "good", tmp_path / "bad")
    again.close()
    assert (tmp_path / "good").read_bytes() == b'{"a":1}\n{"c":3}\n' and (tmp_path / "bad").read_bytes() == b'{"b":2}\n'


async def test_an_error_of_the_router_is_an_error_line(
    client: openai.AsyncOpenAI, service: Service, router: FakeRouterClient
) -> None:
    router.fail_after = (0, InvalidRequest("not this", param="prompt"))
    id = await submit(client, jsonl(line(0)))
    async with running(service):
        batch = await finished(client, id)
    entry = (await entries(client, batch.error_file_id))["r0"]
    assert (entry["response"]["status_code"], entry["response"]["body"]["error"]["message"]) == (400, "not this")
