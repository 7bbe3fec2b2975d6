"""The anthropic package against a real server, and the events on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal

import anthropic
import httpx
import pytest
from fake_router import FakeRouterClient, until
from gateway_site import make_service
from pydantic import BaseModel
from structures import answer_part

from baton.core.errors import DeadlineExceeded, Overloaded, PromptTooLong, Unavailable
from baton.gateway.chat_template import ChatTemplate
from baton.gateway.service import Service
from baton.gateway.text_model import TextModel

HELLO = [{"role": "user", "content": "Hello there."}]
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
TEXT = f"<think>I need the weather.</think>I look. {CALL}{CALL}"
VERSION = {"anthropic-version": "2023-06-01"}
THINKING = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
async def client(
    tool_service: Service, start: Callable[..., AbstractAsyncContextManager[str]]
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with start(tool_service) as url:
        options = {"max_retries": 0, "timeout": 30, "_strict_response_validation": True}
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any", **options) as made:
            yield made


async def post(http: httpx.AsyncClient, path: str = "/v1/messages", **fields: object) -> httpx.Response:
    body = {"model": "toy", "max_tokens": 2000, "messages": HELLO, **fields}
    return await http.post(path, headers=VERSION, json={name: v for name, v in body.items() if v is not ...})


def events(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def test_a_message(
    client: anthropic.AsyncAnthropic, router: FakeRouterClient, tool_model: TextModel, say: Callable[[str], list[int]]
) -> None:
    tokens = say("Fine, thank you.")
    message = await client.messages.create(model="toy", max_tokens=100, messages=HELLO, system="Be brief.")
    assert [(block.type, block.text) for block in message.content] == [("text", "Fine, thank you.")]
    assert (message.stop_reason, message.stop_sequence, message.role) == ("end_turn", None, "assistant")
    prompt = router.requests[0].prompt_token_ids
    assert tool_model.tokenizer.decode(prompt).count("Be brief.") == 1
    usage = message.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (len(prompt), len(tokens), 0)
    assert message.id.startswith("msg_") and message._request_id


async def test_input_tokens_exclude_cached_ones(client: anthropic.AsyncAnthropic, router: FakeRouterClient) -> None:
    long = [{"role": "user", "content": "word " * 100}]
    for _ in range(2):
        message = await client.messages.create(model="toy", max_tokens=4, messages=long)
    prompt = len(router.requests[0].prompt_token_ids)
    assert message.usage.cache_read_input_tokens == (prompt - 1) // 16 * 16 > 0
    assert message.usage.input_tokens == prompt - message.usage.cache_read_input_tokens


async def test_the_events_of_a_stream(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    tokens = say(TEXT)
    found = events(await post(tool_http, stream=True, tools=[WEATHER], thinking=THINKING))
    shape = [(event["type"], event.get("index"), event.get("delta", event.get("content_block", {})).get("type"))
             for event in found]  # fmt: skip
    once = [entry for at, entry in enumerate(shape) if at == 0 or entry != shape[at - 1]]
    block = [("content_block_start", "content_block_delta", "content_block_stop")]
    start, delta, stop = block[0]
    assert once == [
        ("message_start", None, None),
        (start, 0, "thinking"), (delta, 0, "thinking_delta"), (delta, 0, "signature_delta"), (stop, 0, None),
        (start, 1, "text"), (delta, 1, "text_delta"), (stop, 1, None),
        (start, 2, "tool_use"), (delta, 2, "input_json_delta"), (stop, 2, None),
        (start, 3, "tool_use"), (delta, 3, "input_json_delta"), (stop, 3, None),
        ("message_delta", None, None), ("message_stop", None, None),
    ]  # fmt: skip
    message = found[0]["message"]
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], None, 0)
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == len(tokens)


@pytest.mark.parametrize("size", [1, 9, 1000])
async def test_the_stream_helper_equals_the_whole(
    client: anthropic.AsyncAnthropic, router: FakeRouterClient, say: Callable[[str], list[int]], size: int
) -> None:
    say(TEXT)
    router.tokens_per_event = size
    fields = {"model": "toy", "max_tokens": 2000, "messages": HELLO, "tools": [WEATHER], "thinking": THINKING}
    whole = await client.messages.create(**fields)
    async with client.messages.stream(**fields) as stream:
        streamed = await stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole.content[0].thinking == "I need the weather." and whole.content[1].text == "I look."
    assert [block.input for block in whole.content[2:]] == [{"city": "Paris"}] * 2
    for one, other in zip(whole.content, streamed.content, strict=True):
        assert one.model_dump(exclude={"id"}) == other.model_dump(exclude={"id", "parsed_output"})
    assert (whole.stop_reason, whole.usage.output_tokens) == (streamed.stop_reason, streamed.usage.output_tokens)


async def test_thinking_is_shown_to_those_who_ask(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say("<think>Hm.</think>Yes.")
    for fields in ({}, {"thinking": {"type": "disabled"}}):
        assert (await post(tool_http, **fields)).json()["content"] == [{"type": "text", "text": "Yes."}]
        assert "Hm." not in (await post(tool_http, stream=True, **fields)).text
    say("<think>Hm")
    assert (await post(tool_http)).json()["content"] == [{"type": "text", "text": ""}]
    kinds = [event["type"] for event in events(await post(tool_http, stream=True))]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]


async def test_a_stop_sequence_is_named(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say("one two three")
    body = (await post(tool_http, stop_sequences=["nope", " three"])).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", " three")
    assert body["content"][0]["text"] == "one two"
    last = events(await post(tool_http, stop_sequences=[" three"], stream=True))[-2]
    assert last["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " three"}


async def test_max_tokens(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    tokens = say(CALL)
    body = (await post(tool_http, max_tokens=len(tokens) - 9, tools=[WEATHER])).json()
    assert body["stop_reason"] == "max_tokens" and body["usage"]["output_tokens"] == len(tokens) - 9
    [block] = body["content"]
    assert block["type"] == "tool_use" and "Paris".startswith(block["input"].get("city", ""))


async def test_arguments_that_are_no_object(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say('<tool_call>{"name": "get_weather", "arguments": [1, 2]}</tool_call>')
    [block] = (await post(tool_http, tools=[WEATHER])).json()["content"]
    assert block["input"] == {"unparsed": "[1, 2]"}


async def test_tools_and_their_results_reach_the_template(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, tool_model: TextModel
) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "redacted_thinking", "data": "y"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"n": 1}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": "b", "content": "broken", "is_error": True},
            {"type": "tool_result", "tool_use_id": "c"},
            {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
        ]},
        {"role": "user", "content": "Well?"},
    ]  # fmt: skip
    response = await post(tool_http, messages=messages, tools=[WEATHER], max_tokens=1)
    assert response.status_code == 200, response.text
    names = [tool_model.tokenizer.token_name(token) for token in router.requests[0].prompt_token_ids]
    text = "".join(tool_model.tokenizer.decode([token]) or name
                   for token, name in zip(router.requests[0].prompt_token_ids, names, strict=True))  # fmt: skip
    said = text.partition("Weather?")[2]
    assert "get_weather(city: string) - Weather of a city" in text
    assert "<think>Hm.</think>I look." in said and '{"name": "get_weather", "arguments": {"n": 1}}' in said
    assert said.index("rain") < said.index("Error: broken") < said.index("And?\nWell?")


@pytest.mark.parametrize(
    "choice", [{"type": "tool", "name": "get_weather"}, {"type": "any", "disable_parallel_tool_use": True}]
)
async def test_demanded_calls(
    client: anthropic.AsyncAnthropic, router: FakeRouterClient, say: Callable[[str], list[int]], choice: dict
) -> None:
    say(CALL)
    fields = {"model": "toy", "max_tokens": 200, "messages": HELLO, "tools": [WEATHER], "tool_choice": choice}
    message = await client.messages.create(**fields)
    [block] = message.content
    assert (block.type, block.input, message.stop_reason) == ("tool_use", {"city": "Paris"}, "tool_use")
    assert answer_part(router.requests[0].sampling.structure)["elements"][0]["begin"] == "<tool_call>"
    async with client.messages.stream(**fields) as stream:
        assert [block.input for block in (await stream.get_final_message()).content] == [{"city": "Paris"}]


async def test_the_beginning_of_an_answer_is_continued(
    client: anthropic.AsyncAnthropic, router: FakeRouterClient, tool_model: TextModel, say: Callable[[str], list[int]]
) -> None:
    say(" fine, thank you.")
    messages = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "I am"}]}]
    message = await client.messages.create(model="toy", max_tokens=50, messages=messages)
    assert message.content[0].text == " fine, thank you."
    prompt = tool_model.tokenizer.decode(router.requests[0].prompt_token_ids)
    assert prompt.endswith("I am") and prompt.count("I am") == 1
    counted = await client.messages.count_tokens(model="toy", messages=messages)
    assert counted.input_tokens == len(router.requests[0].prompt_token_ids)


class Pick(BaseModel):
    color: Literal["red", "green"]


async def test_parsed_answers(
    client: anthropic.AsyncAnthropic, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say('{"color": "red"}')
    fields = {"model": "toy", "max_tokens": 99, "messages": HELLO, "output_format": Pick}
    assert (await client.messages.parse(**fields)).parsed_output == Pick(color="red")
    schema = answer_part(router.requests[0].sampling.structure)["json_schema"]
    assert schema["properties"]["color"]["enum"] == ["red", "green"] and schema["additionalProperties"] is False
    async with client.messages.stream(**fields) as stream:
        assert (await stream.get_final_message()).parsed_output == Pick(color="red")


async def test_effort_is_the_templates(
    service: Service, router: FakeRouterClient, tool_http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *args: (seen.append(args[2]), render(*args))[1])
    await post(tool_http, output_config={"effort": "high"}, thinking={"type": "adaptive"}, metadata={"user_id": "u"})
    assert seen == [{"reasoning_effort": "high", "enable_thinking": True, "thinking": True}]


async def test_count_tokens_equals_usage(client: anthropic.AsyncAnthropic) -> None:
    for fields in (
        {},
        {"system": "Be brief."},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
    ):
        counted = (await client.messages.count_tokens(model="toy", messages=HELLO, **fields)).input_tokens
        usage = (await client.messages.create(model="toy", messages=HELLO, max_tokens=1, **fields)).usage
        assert counted == usage.input_tokens + usage.cache_read_input_tokens


async def test_models(client: anthropic.AsyncAnthropic) -> None:
    [model] = [model async for model in client.models.list()]
    assert (model.id, model.type, model.display_name) == ("toy", "model", "toy")
    assert (await client.models.retrieve("toy")).id == "toy"
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("unknown")


ERRORS = [
    (PromptTooLong("too long"), 400, "invalid_request_error", anthropic.BadRequestError),
    (Overloaded("full", retry_after_s=7), 429, "rate_limit_error", anthropic.RateLimitError),
    (Unavailable("nobody"), 503, "overloaded_error", anthropic.APIStatusError),
    (DeadlineExceeded("late"), 504, "timeout_error", anthropic.APIStatusError),
    (RuntimeError("a defect"), 500, "api_error", anthropic.InternalServerError),
]


@pytest.mark.parametrize("error, status, kind, raised", ERRORS, ids=lambda value: str(value)[:20])
async def test_errors_from_behind(
    client: anthropic.AsyncAnthropic, router: FakeRouterClient, error: Exception, status: int, kind: str, raised: type
) -> None:
    router.fail_after = (0, error)
    for stream in (False, True):
        with pytest.raises(raised) as caught:
            await client.messages.create(model="toy", messages=HELLO, max_tokens=4, stream=stream)
        body = caught.value.response.json()
        assert caught.value.status_code == status and body["type"] == "error" and body["error"]["type"] == kind
        assert body["request_id"] == caught.value.response.headers["request-id"]
        assert "a defect" not in body["error"]["message"]
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "7"


BAD = [
    ({"max_tokens": ...}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "Well "}]}, "cannot end with white space"),
    (
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
            ]
        },
        "Only an assistant's message of text",
    ),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "'messages[0].content': block 0 is of type 'image', which is not supported; this model takes text only",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "what"}]}]}, "messages[0].content[0]"),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}],
                }
            ]
        },
        "tool_result.content': block 0 is of type 'image'",
    ),
    ({"system": [{"type": "text", "text": 3}]}, "'system[0].text'"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]}, "role"),
    ({"temperature": 1.5}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    ({"system": 5}, "system"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
    ({"tools": [WEATHER, WEATHER]}, "unique"),
    ({"tools": [{**WEATHER, "strict": "yes"}]}, "tools[0].strict"),
    ({"tool_choice": {"type": "any"}}, "there are no tools"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "nope"}}, "none of the tools"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024}, "max_tokens"),
    ({"output_config": {"format": {}}}, "output_config.format.type"),
    ({"output_config": {"effort": "most"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"metadata": {"user_id": 3}}, "metadata.user_id"),
    ({"service_tier": "best"}, "service_tier"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
]


@pytest.mark.parametrize("fields, message", BAD, ids=lambda value: str(value)[:60])
async def test_bad_requests_are_named(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, fields: dict, message: str
) -> None:
    response = await post(tool_http, **fields)
    assert response.status_code == 400 and not router.requests
    body = response.json()
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert message in body["error"]["message"]


async def test_thinking_may_have_a_budget_for_several_messages(
    tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]
) -> None:
    say("Yes.")
    budget = {"type": "enabled", "budget_tokens": 4000}
    body = {"model": "toy", "max_tokens": 2000, "messages": HELLO, "thinking": budget}
    for beta, status in (("other-beta", 400), ("other-beta,interleaved-thinking-2025-05-14", 200)):
        response = await tool_http.post("/v1/messages", json=body, headers={**VERSION, "anthropic-beta": beta})
        assert response.status_code == status


async def test_errors_of_the_path(tool_http: httpx.AsyncClient) -> None:
    for response in (
        await tool_http.post("/v1/messages", content=b"{nope"),
        await tool_http.get("/v1/messages"),
        await post(tool_http, model="unknown"),
        await post(tool_http, path="/v1/messages/batches"),
    ):
        assert response.json()["type"] == "error" and response.status_code in (400, 404, 405)


async def test_an_error_in_mid_stream(client: anthropic.AsyncAnthropic, router: FakeRouterClient) -> None:
    router.fail_after = (2, Unavailable("the last worker is gone"))
    with pytest.raises(anthropic.APIStatusError, match="the last worker is gone"):
        async with client.messages.stream(model="toy", messages=HELLO, max_tokens=50) as stream:
            await stream.get_final_message()


async def test_silence_is_bridged_by_pings(
    router: FakeRouterClient, tool_model: TextModel, start: Callable[..., AbstractAsyncContextManager[str]]
) -> None:
    router.gate = asyncio.Event()
    service = make_service(router, tool_model, keep_alive_s=0.01)
    body = {"model": "toy", "max_tokens": 2, "messages": HELLO, "stream": True}
    async with (
        start(service) as url,
        httpx.AsyncClient(base_url=url) as http,
        http.stream("POST", "/v1/messages", json=body) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "event: ping"
        router.gate.set()
        assert "event: message_stop" in [line async for line in lines]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels(
    client: anthropic.AsyncAnthropic, router: FakeRouterClient, stream: bool
) -> None:
    router.gate = asyncio.Event()
    asking = asyncio.create_task(client.messages.create(model="toy", messages=HELLO, max_tokens=2000, stream=stream))
    await until(lambda: router.running == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: router.running == 0)
    assert router.cancelled == 1
