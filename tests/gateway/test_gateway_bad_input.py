from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import httpx
import pytest
import tokenizers
from fake_router import FakeRouterClient
from gateway_site import make_service
from openai_description import Description
from tokenizers.processors import ByteLevel

from baton.core.errors import DeadlineExceeded, Overloaded, PromptTooLong, Unavailable
from baton.gateway.app import create_app
from baton.gateway.text_model import TextModel
from baton.gateway.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello there."}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NO_TEXT = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
TOOL = {"type": "function", "function": {"name": "f"}}


def error_of(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert response.headers["x-request-id"]
    return error


BAD_CHAT = [
    ("temperature", 5),
    ("temperature", -0.5),
    ("temperature", "hot"),
    ("top_p", 1.5),
    ("top_k", -2),
    ("min_p", 2),
    ("repetition_penalty", 0),
    ("n", 0),
    ("n", 1000),
    ("n", 1.5),
    ("max_tokens", 0),
    ("max_completion_tokens", -1),
    ("max_completion_tokens", "many"),
    ("min_tokens", 100),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("logit_bias", [1, 2]),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"99999999999999999999": 1}),
    ("logit_bias", {"800": 1}),
    ("seed", 1 << 70),
    ("seed", "x"),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", ""),
    ("stop", [1]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", [800]),
    ("top_logprobs", 2),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("messages", []),
    ("messages", "hi"),
    ("model", 5),
    ("tools", [TOOL]),
    ("tool_choice", "required"),
    ("regex", ""),
    ("functions", [{}]),
    ("functions", [{"name": "f"}, {"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
]


@pytest.mark.parametrize("field, value", BAD_CHAT, ids=lambda value: str(value)[:40])
async def test_bad_chat_fields_are_named(
    http: httpx.AsyncClient, router: FakeRouterClient, field: str, value: object
) -> None:
    body = {"model": "toy", "messages": HELLO, "max_tokens": 4, field: value}
    param = error_of(await http.post(CHAT, json=body), 400)["param"]
    assert param.split("[")[0].split(".")[0] == field
    assert not router.requests


REQUESTS = {
    "CreateChatCompletionRequest": (CHAT, {"model": "toy", "messages": HELLO, "max_tokens": 2}),
    "CreateCompletionRequest": (COMPLETIONS, {"model": "toy", "prompt": "hi", "max_tokens": 2}),
    "CreateEmbeddingRequest": ("/v1/embeddings", {"model": "toy", "input": "hi"}),
    "CreateResponse": ("/v1/responses", {"model": "toy", "input": "hi", "max_output_tokens": 2}),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_every_field_of_the_description_is_validated(
    http: httpx.AsyncClient, router: FakeRouterClient, description: Description | None, name: str
) -> None:
    """What the description does not allow is refused, and named."""
    if description is None:
        pytest.skip("OpenAI's description is not here")
    path, body = REQUESTS[name]
    fields = description.fields(name)
    assert len(fields) >= 5
    for field, schema in fields.items():
        for value in ([1], {"x": [1]}, "\0wrong", 3.5, True):
            if not description.allows(schema, value):
                response = await http.post(path, json={**body, field: value})
                assert response.status_code in (400, 404), (field, value, response.text)
                param = response.json()["error"]["param"] or field
                assert param.startswith(field) or response.status_code == 404, (field, value, response.text)


async def test_unions_are_named_without_their_branches(http: httpx.AsyncClient) -> None:
    body = {"model": "toy", "messages": HELLO, "tools": [TOOL]}
    for field, value in (
        ("tool_choice", "maybe"),
        ("guided_json", 5),
        ("prediction", {"type": "content", "content": 1}),
    ):
        param = error_of(await http.post(CHAT, json={**body, field: value}), 400)["param"]
        assert param in (field, f"{field}.content")


async def test_top_logprobs_have_a_limit(http: httpx.AsyncClient) -> None:
    body = {"model": "toy", "messages": HELLO, "logprobs": True, "top_logprobs": 21}
    assert error_of(await http.post(CHAT, json=body), 400)["param"] == "top_logprobs"


BAD_MESSAGES = [
    ([{"role": "wizard", "content": "hi"}], "messages[0].role"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user"}], "messages[0].content"),
    ([*HELLO, {"role": "user", "content": None}], "messages[1].content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
    (NO_TEXT, "messages[0].content"),
    (["hi"], "messages[0]"),
    ([{"content": "hi"}], "messages[0].role"),
    (
        [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}],
        "messages[0].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize("messages, param", BAD_MESSAGES)
async def test_bad_messages_are_named(http: httpx.AsyncClient, messages: list, param: str) -> None:
    error = error_of(await http.post(CHAT, json={"model": "toy", "messages": messages}), 400)
    assert error["param"] == param and error["type"] == "invalid_request_error"


BAD_COMPLETIONS = [
    ("prompt", []),
    ("prompt", 5),
    ("prompt", [[]]),
    ("prompt", ["a", 1]),
    ("prompt", [-1]),
    ("prompt", [800]),
    ("prompt", [1 << 40]),
    ("prompt", [True]),
    ("prompt", ["a"] * 200),
    ("best_of", 129),
    ("suffix", "end"),
    ("logprobs", 21),
    ("logprobs", -1),
    ("max_tokens", -1),
    ("echo", "x"),
]


@pytest.mark.parametrize("field, value", BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
async def test_bad_completion_fields_are_named(http: httpx.AsyncClient, field: str, value: object) -> None:
    response = await http.post(COMPLETIONS, json={"model": "toy", "prompt": "x", field: value})
    assert error_of(response, 400)["param"] == field


@pytest.mark.parametrize("path, field", [(CHAT, "messages"), (CHAT, "model"), (COMPLETIONS, "prompt")])
async def test_missing_fields_are_named(http: httpx.AsyncClient, path: str, field: str) -> None:
    body = {"model": "toy", "messages": HELLO, "prompt": "x"}
    del body[field]
    error = error_of(await http.post(path, json=body), 400)
    assert error["param"] == field and "Missing" in error["message"]


MALFORMED = [
    b"",
    b'{"model": "x", ',
    b"[]",
    b"null",
    b'{"model": "\xff"}',
    b'{"model": "\\ud800"}',
    b'{"temperature": NaN}',
    b'{"temperature": 1e999}',
    b"[" * 100_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:20]))
async def test_malformed_bodies(http: httpx.AsyncClient, path: str, body: bytes) -> None:
    error_of(await http.post(path, content=body), 400)


async def test_deep_nesting_inside_the_limit_of_the_parser(http: httpx.AsyncClient) -> None:
    deep: object = {}
    for _ in range(900):
        deep = {"a": deep}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": deep}}
    messages = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
    body = {"model": "toy", "messages": messages, "max_tokens": 1, "metadata": deep}
    assert (await http.post(CHAT, json=body)).status_code in (200, 400)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model(http: httpx.AsyncClient, stream: bool) -> None:
    body = {"model": "nope", "messages": HELLO, "stream": stream}
    error = error_of(await http.post(CHAT, json=body), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found") and "'toy'" in error["message"]


async def test_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    assert "unknown" in error_of(await http.post("/v1/no/such", json={}), 404)["message"]
    response = await http.get(CHAT)
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_large_body(http: httpx.AsyncClient, declared: bool) -> None:
    async def endless():
        for _ in range(100):
            yield b"x" * (1 << 16)

    body = b"x" * (2 << 20) if declared else endless()
    assert "1048576 bytes" in error_of(await http.post(CHAT, content=body), 413)["message"]


async def test_an_over_long_prompt_names_limit_and_length(http: httpx.AsyncClient) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": "hello " * 5000}]}
    error = error_of(await http.post(CHAT, json=body), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "4096 tokens" in error["message"]
    error = error_of(await http.post(COMPLETIONS, json={"model": "toy", "prompt": [5] * 4096}), 400)
    assert "has 4096 tokens" in error["message"] and error["param"] == "prompt"


async def test_a_prompt_of_zero_tokens(router: FakeRouterClient, model: TextModel, checkpoint: Path) -> None:
    """The checkpoint's tokenizer puts a first token before every text; only one that does not can make no token."""
    inner = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    inner.post_processor = ByteLevel()
    app = create_app(make_service(router, dataclasses.replace(model, tokenizer=Tokenizer(inner))))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        for prompt in ("", ["x", ""]):
            error = error_of(await http.post(COMPLETIONS, json={"model": "toy", "prompt": prompt}), 400)
            assert error["param"] == "prompt" and "at least one token" in error["message"]


ROUTER_ERRORS = [
    (Overloaded("queue is full", retry_after_s=2.5), 429, "3"),
    (Unavailable("no decode worker"), 503, "1"),
    (DeadlineExceeded("too late"), 504, None),
    (PromptTooLong("the worker's limit is 100 tokens", param="prompt"), 400, None),
    (RuntimeError("secret detail"), 500, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error, status, retry_after", ROUTER_ERRORS)
@pytest.mark.filterwarnings("ignore")
async def test_errors_of_the_router(
    http: httpx.AsyncClient, router: FakeRouterClient, error: Exception, status: int, retry_after: str, stream: bool
) -> None:
    router.fail_after = (0, error)
    body = {"model": "toy", "messages": HELLO, "stream": stream, "max_tokens": 4}
    transport = httpx.ASGITransport(http._transport.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.post(CHAT, json=body)
    assert "secret" not in error_of(response, status)["message"]
    assert response.headers.get("retry-after") == retry_after
    assert router.running == 0


async def test_an_error_in_mid_stream_is_its_last_event(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    router.fail_after = (2, Unavailable("the last worker is gone"))
    response = await http.post(CHAT, json={"model": "toy", "messages": HELLO, "stream": True, "n": 2})
    assert response.status_code == 200
    last = response.text.rstrip("\n").split("\n\n")[-1]
    assert last.startswith('data: {"error":{"message":"the last worker is gone"') and "[DONE]" not in response.text
    assert router.running == 0


async def test_a_router_that_hangs_ends_with_the_deadline(
    router: FakeRouterClient, model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.gateway.generation._ROUTER_GRACE_S", 0.0)
    router.gate = asyncio.Event()
    service = make_service(router, model, request_timeout_s=0.05)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://gateway") as http:
        error_of(await http.post(CHAT, json={"model": "toy", "messages": HELLO}), 504)
    assert router.running == 0 and router.requests[0].deadline_s == 0.05


async def test_a_model_without_chat_template(router: FakeRouterClient, model: TextModel) -> None:
    service = make_service(router, dataclasses.replace(model, template=None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://gateway") as http:
        error = error_of(await http.post(CHAT, json={"model": "toy", "messages": HELLO}), 400)
        assert "chat template" in error["message"] and error["param"] == "messages"
        assert (await http.post(COMPLETIONS, json={"model": "toy", "prompt": "x"})).status_code == 200
