"""The ollama package against a real server, and the lines on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import ollama
import pytest
from fake_router import FakeRouterClient, until
from gateway_site import make_service
from structures import answer_part

from baton.core.errors import Overloaded, Unavailable
from baton.gateway.service import Service
from baton.gateway.text_model import TextModel

HELLO = [{"role": "user", "content": "Hello there."}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 3, "b": 4}}</tool_call>'
TEXT = f"<think>I need a sum.</think>I add. {CALL}{CALL}"


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
      a: first
      b: second
    """
    return a + b


@pytest.fixture
async def client(
    tool_service: Service, start: Callable[..., AbstractAsyncContextManager[str]]
) -> AsyncIterator[ollama.AsyncClient]:
    async with start(tool_service) as url:
        made = ollama.AsyncClient(host=url, timeout=30)
        yield made
        await made._client.aclose()


async def post(http: httpx.AsyncClient, path: str = "/api/chat", **fields: object) -> httpx.Response:
    prompt = {"messages": HELLO} if path == "/api/chat" else {"prompt": "Hello there."}
    return await http.post(path, json={"model": "toy", **prompt, **fields})


def lines(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    found = [json.loads(line) for line in response.text.splitlines()]
    assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]
    assert all(line["model"] == "toy" and line["created_at"].endswith("Z") for line in found)
    return found


async def test_chat(client: ollama.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]) -> None:
    tokens = say("Fine, thank you.")
    whole = await client.chat("toy", HELLO)
    assert whole.message.role == "assistant" and whole.message.content == "Fine, thank you."
    assert (whole.done, whole.done_reason) == (True, "stop")
    assert (whole.prompt_eval_count, whole.eval_count) == (len(router.requests[0].prompt_token_ids), len(tokens))
    assert whole.total_duration >= whole.prompt_eval_duration + whole.eval_duration - 2 > 0
    parts = [part async for part in await client.chat("toy", HELLO, stream=True)]
    assert "".join(part.message.content for part in parts) == "Fine, thank you." and len(parts) > 2
    assert parts[-1].eval_count == len(tokens) and parts[0].done_reason is None


async def test_generate(
    client: ollama.AsyncClient, router: FakeRouterClient, tool_model: TextModel, say: Callable[[str], list[int]]
) -> None:
    say("<think>Hm.</think>Fine.")
    whole = await client.generate("toy", "Hello there.", system="Be brief.")
    assert (whole.response, whole.thinking, whole.done_reason) == ("Fine.", "Hm.", "stop")
    parts = [part async for part in await client.generate("toy", "Hello there.", system="Be brief.", stream=True)]
    assert "".join(part.response for part in parts) == "Fine."
    assert "".join(part.thinking or "" for part in parts) == "Hm."
    assert tool_model.tokenizer.decode(router.requests[0].prompt_token_ids) == "Be brief.Hello there."


async def test_a_raw_prompt_is_continued_as_it_is(
    client: ollama.AsyncClient, router: FakeRouterClient, tool_model: TextModel, say: Callable[[str], list[int]]
) -> None:
    say(CALL)
    whole = await client.generate("toy", "Once upon", raw=True)
    [expected] = tool_model.tokenizer.encode(["Once upon"], add_special_tokens=True)
    assert router.requests[0].prompt_token_ids == expected and whole.response == CALL


async def test_tools(client: ollama.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]) -> None:
    say(TEXT)
    whole = await client.chat("toy", HELLO, tools=[add], think=True)
    assert (whole.message.content, whole.message.thinking) == ("I add.", "I need a sum.")
    assert [(call.function.name, call.function.arguments) for call in whole.message.tool_calls] == [
        ("add", {"a": 3, "b": 4})
    ] * 2
    parts = [part async for part in await client.chat("toy", HELLO, tools=[add], stream=True)]
    calls = [call for part in parts for call in part.message.tool_calls or []]
    assert [call.function.arguments for call in calls] == [{"a": 3, "b": 4}] * 2
    assert "".join(part.message.thinking or "" for part in parts) == "I need a sum."
    history = [*HELLO, whole.message, {"role": "tool", "tool_name": "add", "content": "7"}]
    assert (await client.chat("toy", history, tools=[add])).done


async def test_results_find_their_calls_by_name(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, tool_model: TextModel
) -> None:
    """Templates that want ids get matching ones, though Ollama's messages have none."""
    asked = parse_chat(
        {"role": "assistant", "tool_calls": [function("f"), function("g"), function("f")]},
        {"role": "tool", "tool_name": "g", "content": "1"},
        {"role": "tool", "tool_name": "f", "content": "2"},
        {"role": "tool", "content": "3"},
    )
    calls = [call["id"] for call in asked[0]["tool_calls"]]
    assert len(set(calls)) == 3 and all(len(id) == 9 and id.isalnum() for id in calls)
    assert [message["tool_call_id"] for message in asked[1:]] == [calls[1], calls[0], calls[2]]


def function(name: str) -> dict:
    return {"function": {"name": name, "arguments": {}}}


def parse_chat(*messages: dict) -> list:
    from baton.gateway.http.fields import parse
    from baton.gateway.ollama.request import ChatRequest

    return list(parse(ChatRequest, {"model": "toy", "messages": list(messages)}).conversation().messages)


async def test_thinking_can_be_switched_off(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say("<think>Hm.</think>Yes.")
    assert (await post(tool_http, think=False, stream=False)).json()["message"] == {
        "role": "assistant", "content": "Yes.",
    }  # fmt: skip
    assert "Hm" not in (await post(tool_http, think=False)).text
    shown = lines(await post(tool_http, think="high"))
    assert "".join(line["message"].get("thinking", "") for line in shown) == "Hm."


async def test_options_reach_the_router(tool_http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    options = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": -0.3, "seed": 42, "num_predict": 12, "num_ctx": 2048, "num_gpu": 1, "mirostat": 0,
    }  # fmt: skip
    response = await post(tool_http, options=options, keep_alive="5m")
    assert lines(response)[-1]["done_reason"] == "length"
    sampling = router.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.2, -0.3)
    assert (sampling.seed, sampling.max_tokens) == (42, 12)
    for seed in (-1, -1):
        await post(tool_http, options={"seed": seed, "num_predict": 1})
    assert router.requests[1].sampling.seed != router.requests[2].sampling.seed


async def test_a_format_is_a_structure_for_the_workers(tool_http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    only = {**schema, "additionalProperties": False}
    for path in ("/api/chat", "/api/generate"):
        for format in ("json", schema, "", None):
            assert (await post(tool_http, path=path, format=format, options={"num_predict": 1})).status_code == 200
        any_json, of_schema, *free = [request.sampling.structure for request in router.requests[-4:]]
        assert answer_part(any_json)["json_schema"] == {"type": "object"}
        assert answer_part(of_schema)["json_schema"] == only and free == [None, None]
        await post(tool_http, path=path, format=schema, think=False, options={"num_predict": 1})
        at_once = router.requests[-1].sampling.structure
        assert (at_once.kind, json.loads(at_once.text)) == ("json_schema", only)


async def test_a_format_holds_after_thinking(client: ollama.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say('<think>One, I guess.</think>\n\n{"a": 1}')
    message = (await client.chat("toy", HELLO, format={"properties": {"a": {"type": "integer"}}}, think=True)).message
    assert (message.thinking, message.content) == ("One, I guess.", '{"a": 1}')


async def test_stop_strings(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say("one two three")
    for stop in (" three", ["nope", " three"]):
        body = (await post(tool_http, stream=False, options={"stop": stop})).json()
        assert (body["message"]["content"], body["done_reason"]) == ("one two", "stop")


async def test_logprobs(client: ollama.AsyncClient, say: Callable[[str], list[int]]) -> None:
    tokens = say("Fine.")
    whole = await client.chat("toy", HELLO, logprobs=True, top_logprobs=2)
    assert len(whole.logprobs) == len(tokens) and len(whole.logprobs[0].top_logprobs) == 2
    parts = [part async for part in await client.chat("toy", HELLO, logprobs=True, stream=True)]
    assert len([entry for part in parts for entry in part.logprobs or []]) == len(tokens)


async def test_without_a_prompt_nothing_runs(client: ollama.AsyncClient, router: FakeRouterClient) -> None:
    assert (await client.generate("toy")).done_reason == "load"
    assert (await client.chat("toy", [])).done_reason == "load"
    assert (await client.generate("toy", keep_alive=0)).done_reason == "unload"
    assert [part.done_reason async for part in await client.generate("toy", stream=True)] == ["load"]
    assert not router.requests


async def test_models(client: ollama.AsyncClient, router: FakeRouterClient) -> None:
    [listed] = (await client.list()).models
    assert listed.model == "toy" and listed.size > 0 and listed.digest and listed.modified_at.year > 2000
    assert (listed.details.format, listed.details.family) == ("safetensors", "llama")
    shown = await client.show("toy:latest")
    assert shown.modelinfo["llama.context_length"] == 4096 and "<tool_call>" in shown.template
    assert shown.capabilities == ["completion", "tools", "thinking"]
    [running] = (await client.ps()).models
    assert running.model == "toy" and running.expires_at.year == 9999
    router.ready = False
    assert (await client.ps()).models == []


async def test_names_with_a_tag(client: ollama.AsyncClient) -> None:
    assert (await client.chat("toy:latest", HELLO, options={"num_predict": 1})).model == "toy:latest"
    with pytest.raises(ollama.ResponseError, match="toy:7b") as caught:
        await client.chat("toy:7b", HELLO)
    assert caught.value.status_code == 404


async def test_the_version(tool_http: httpx.AsyncClient) -> None:
    assert (await tool_http.get("/api/version")).json()["version"][0].isdigit()


async def test_what_is_not_there_says_so(client: ollama.AsyncClient) -> None:
    for asking in (client.pull("toy"), client.copy("toy", "b"), client.delete("toy")):
        with pytest.raises(ollama.ResponseError) as caught:
            await asking
        assert caught.value.status_code == 501 and caught.value.error


BAD = [
    ({"messages": 5}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
    ({"format": "yaml"}, "format"),
    ({"format": 5}, "format"),
    ({"options": {"temperature": "hot"}}, "options.temperature"),
    ({"options": {"num_predict": 0}}, "options.num_predict"),
    ({"options": {"mirostat": 1}}, "options.mirostat"),
    ({"options": {"stop": [""]}}, "options.stop[0]"),
    ({"options": 5}, "options"),
    ({"think": "sometimes"}, "think"),
    ({"stream": "yes"}, "stream"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
]


@pytest.mark.parametrize("fields, message", BAD, ids=lambda value: str(value)[:60])
async def test_bad_chat_requests_are_named(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, fields: dict, message: str
) -> None:
    response = await post(tool_http, **fields)
    assert response.status_code == 400 and not router.requests
    assert set(response.json()) == {"error"} and message in response.json()["error"]


@pytest.mark.parametrize("field", ["suffix", "template", "context", "images"])
async def test_bad_generate_requests_are_named(tool_http: httpx.AsyncClient, field: str) -> None:
    response = await post(tool_http, path="/api/generate", **{field: ["x"]})
    assert response.status_code == 400 and field in response.json()["error"]
    unable = await post(tool_http, path="/api/generate", suffix="x")
    assert unable.status_code == 400 and "cannot fill in" in unable.json()["error"]
    raw = await post(tool_http, path="/api/generate", raw=True, system="x")
    assert raw.status_code == 400 and "system" in raw.json()["error"]


@pytest.mark.parametrize("stream", [True, False])
async def test_errors(
    client: ollama.AsyncClient, tool_http: httpx.AsyncClient, router: FakeRouterClient, stream: bool
) -> None:
    assert "error" in (await tool_http.get("/api/unknown")).json()
    assert "error" in (await tool_http.post("/api/chat", content=b"{nope")).json()
    router.fail_after = (0, Overloaded("queue is full"))
    with pytest.raises(ollama.ResponseError, match="queue is full") as caught:
        answer = await client.chat("toy", HELLO, stream=stream)
        async for _ in answer:
            pass
    assert caught.value.status_code == 429


async def test_an_error_in_mid_stream(client: ollama.AsyncClient, router: FakeRouterClient) -> None:
    router.fail_after = (2, Unavailable("the last worker is gone"))
    with pytest.raises(ollama.ResponseError, match="the last worker is gone"):
        async for _ in await client.chat("toy", HELLO, stream=True):
            pass


async def test_silence_is_bridged_by_empty_lines_of_the_answer(
    router: FakeRouterClient, tool_model: TextModel, start: Callable[..., AbstractAsyncContextManager[str]]
) -> None:
    router.gate = asyncio.Event()
    async with start(make_service(router, tool_model, keep_alive_s=0.01)) as url:
        client = ollama.AsyncClient(host=url)
        parts = aiter(await client.chat("toy", HELLO, stream=True, options={"num_predict": 2}))
        first = await anext(parts)
        assert (first.message.content, first.done) == ("", False)
        router.gate.set()
        assert [part.done async for part in parts][-1]
        await client._client.aclose()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels(client: ollama.AsyncClient, router: FakeRouterClient, stream: bool) -> None:
    router.gate = asyncio.Event()

    async def ask() -> None:
        answer = await client.chat("toy", HELLO, stream=stream)
        async for _ in answer:
            pass

    asking = asyncio.create_task(ask())
    await until(lambda: router.running == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: router.running == 0)
    assert router.cancelled == 1


async def test_bodies_of_all_apis_are_described(tool_http: httpx.AsyncClient) -> None:
    document = (await tool_http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for path, name in (
        ("/v1/chat/completions", "OpenaiChatRequest"), ("/v1/messages", "AnthropicMessagesRequest"),
        ("/api/chat", "OllamaChatRequest"),
    ):  # fmt: skip
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{name}"}
    assert "thinking" in schemas["OllamaMessage"]["properties"]
    assert "reasoning_content" in schemas["OpenaiMessage"]["properties"]
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]]
    assert set(references) <= set(schemas)
