from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import openai
import pytest
from fake_router import NAME, FakeRouterClient
from gateway_site import make_service, running
from openai_description import Description
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from baton.gateway.app import create_app
from baton.gateway.http.context import WithContext
from baton.gateway.service import Service
from baton.gateway.text_model import TextModel
from baton.runtime import logs
from baton.testing.checkpoints import make_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _logs() -> None:
    logs.configure("gateway", level="warning")


CONFORMANCE = Path(
    os.environ.get("BATON_CONFORMANCE_DIR") or Path(__file__).parents[2] / ".." / "shared" / "conformance"
)


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Recorded material of other projects; see BATON_CONFORMANCE_DIR."""
    folder = CONFORMANCE
    if not folder.is_dir():
        pytest.skip("no conformance material: BATON_CONFORMANCE_DIR is not set, and ../shared/conformance is not there")
    return folder


@pytest.fixture(scope="session")
def description() -> Description | None:
    path = CONFORMANCE / "openapi" / "openapi.json"
    return Description(path) if path.is_file() else None


_MOST_CHECKED_BYTES = 1 << 20  # of an answer: checking more takes longer than tests wait


@pytest.fixture(autouse=True)
def _answers_as_described(
    description: Description | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[tuple[str, str]]]:
    """Every answer of every test is held against OpenAI's description, where that is there."""
    problems: list[tuple[str, str]] = []
    answer = WithContext.__call__

    async def recorded(self: WithContext, scope: Scope, receive: Receive, send: Send) -> None:
        status, media_type, body = 0, "", bytearray()

        async def seen(message: Message) -> None:
            nonlocal status, media_type, body
            if message["type"] == "http.response.start":
                status, media_type = message["status"], Headers(raw=message["headers"]).get("content-type", "")
            else:
                body += message.get("body", b"")
            await send(message)

        await answer(self, scope, receive, seen)
        if "anthropic-version" not in Headers(scope=scope) and len(body) < _MOST_CHECKED_BYTES:
            found = description.problems(scope["method"], scope["path"], status, media_type, bytes(body))
            problems.extend((f"{scope['method']} {scope['path']} {status}", problem) for problem in found)

    if description is not None:
        monkeypatch.setattr(WithContext, "__call__", recorded)
    yield problems
    assert problems == []


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / NAME, layers=1, hidden=16, heads=2, vocab=800)


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> TextModel:
    return TextModel.load(checkpoint)


@pytest.fixture
def router(model: TextModel) -> FakeRouterClient:
    """Answers with tokens that are plain ASCII text."""
    tokenizer = model.tokenizer
    words = [id for id in range(tokenizer.size) if (data := tokenizer.token_bytes(id)) and data.isascii()]
    return FakeRouterClient(words)


@pytest.fixture
def service(router: FakeRouterClient, model: TextModel) -> Service:
    return make_service(router, model, aliases=("other-name",), max_body_bytes=1 << 20)


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """The application without a server."""
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
def start() -> Callable[..., AbstractAsyncContextManager[str]]:
    return running


@pytest.fixture
async def url(service: Service) -> AsyncIterator[str]:
    async with running(service) as address:
        yield address


@pytest.fixture(scope="session")
def tool_model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder = tmp_path_factory.mktemp("checkpoints") / "tools"
    shutil.copytree(checkpoint, folder)
    template = Path(__file__).parents[2] / "tools" / "bundled_model" / "chat_template.jinja"
    shutil.copy(template, folder / "chat_template.jinja")
    return TextModel.load(folder)


@pytest.fixture
def tool_service(router: FakeRouterClient, tool_model: TextModel) -> Service:
    return make_service(router, tool_model)


@pytest.fixture
async def client(
    tool_service: Service, start: Callable[..., AbstractAsyncContextManager[str]]
) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client, which holds every answer against its types."""
    async with start(tool_service) as url:
        options = {"max_retries": 0, "timeout": 30, "_strict_response_validation": True}
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", **options) as made:
            yield made
    await tool_service.close()


@pytest.fixture
async def tool_http(tool_service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(tool_service))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
def say(router: FakeRouterClient, tool_model: TextModel) -> Callable[[str], list[int]]:
    def script(text: str) -> list[int]:
        router.script = tool_model.tokenizer.encode([text], add_special_tokens=False)[0]
        return router.script

    return script
