"""Tools and reasoning through OpenAI's chat completions, with the bundled model's chat template."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest
from fake_router import FakeRouterClient, until
from gateway_site import make_service
from structures import answer_part

from baton.core.structure import Structure
from baton.gateway import metrics
from baton.gateway.app import create_app
from baton.gateway.conversation import read_prompt
from baton.gateway.http.fields import parse
from baton.gateway.openai.chat import ChatRequest
from baton.gateway.service import Service
from baton.gateway.text_model import TextModel

USER = [{"role": "user", "content": "Weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
TEXT = f"<think>I need the weather.</think>I look. {CALL}{CALL}"


async def ask(http: httpx.AsyncClient, **fields: object) -> httpx.Response:
    body = {"model": "toy", "messages": USER, "tools": [WEATHER, CLOCK], "max_tokens": 300, **fields}
    return await http.post("/v1/chat/completions", json={name: v for name, v in body.items() if v is not None})


async def test_the_whole_answer(client: openai.AsyncOpenAI, say: Callable[[str], list[int]]) -> None:
    say(TEXT)
    answer = await client.chat.completions.create(model="toy", messages=USER, tools=[WEATHER], tool_choice="auto")
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    assert choice.message.model_extra["reasoning_content"] == "I need the weather."
    calls = choice.message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", '{"city": "Paris"}')
    ] * 2
    assert len({call.id for call in calls}) == 2 and all(call.id.startswith("call_") for call in calls)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_the_stream(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]], size: int
) -> None:
    say(TEXT)
    router.tokens_per_event = size
    async with client.chat.completions.stream(model="toy", messages=USER, tools=[WEATHER]) as stream:
        chunks = [event.chunk async for event in stream if event.type == "chunk"]
        message = (await stream.get_final_completion()).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert message.content == "I look." and len(message.tool_calls) == 2
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "I need the weather."
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    named = [part for part in parts if part.function.name]
    assert [(part.index, part.function.name, part.function.arguments, part.type) for part in named] == [
        (0, "get_weather", "", "function"), (1, "get_weather", "", "function"),
    ]  # fmt: skip
    assert all(part.id is None for part in parts if not part.function.name)
    for index in (0, 1):
        assert "".join(p.function.arguments or "" for p in parts if p.index == index) == '{"city": "Paris"}'
    assert not any("<" in (delta.content or "") for delta in deltas)


async def test_only_calls_have_null_content(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say(CALL)
    message = (await ask(tool_http)).json()["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 1
    assert "reasoning_content" not in message


async def test_reasoning_can_be_left_out(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say("<think>Hm.</think>Yes.")
    message = (await ask(tool_http, include_reasoning=False)).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Yes.", "refusal": None}
    text = (await ask(tool_http, include_reasoning=False, stream=True)).text
    assert "Hm" not in text and "reasoning_content" not in text


async def test_reasoning_needs_no_tools(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say(f"<think>Hm.</think>{CALL}")
    choice = (await ask(tool_http, tools=None)).json()["choices"][0]
    assert choice["message"]["reasoning_content"] == "Hm." and choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop" and "tool_calls" not in choice["message"]


async def test_one_call_where_parallel_ones_are_off(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    tokens = say(f"{CALL}{CALL}" + " more" * 50)
    body = (await ask(tool_http, parallel_tool_calls=False)).json()
    [choice] = body["choices"]
    assert len(choice["message"]["tool_calls"]) == 1 and choice["finish_reason"] == "tool_calls"
    assert body["usage"]["completion_tokens"] < len(tokens) and router.cancelled == 1
    stream = (await ask(tool_http, parallel_tool_calls=False, stream=True)).text
    assert stream.count('"name":"get_weather"') == 1 and '"finish_reason":"tool_calls"' in stream


async def test_no_tools_are_offered_where_none_may_be_called(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, tool_model: TextModel
) -> None:
    for fields in ({}, {"tool_choice": "none"}, {"tools": None}):
        await ask(tool_http, **fields)
    with_tools, none, without = (tool_model.tokenizer.decode(request.prompt_token_ids) for request in router.requests)
    assert "get_weather(city: string) - Weather of a city" in with_tools and "get_time()" in with_tools
    assert none == without and "get_weather" not in none


async def test_history_with_calls_and_results(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, tool_model: TextModel
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    ]
    assert (await ask(tool_http, messages=messages)).status_code == 200
    text = tool_model.tokenizer.decode(router.requests[0].prompt_token_ids)
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>' in text
    assert "<think>Hm.</think>" in text and "rain" in text


async def test_functions_are_tools_by_another_name(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    """One call at most; what was said in the old words is told as in the new ones."""
    say(TEXT)
    functions = {"model": "toy", "messages": USER, "functions": [WEATHER["function"]]}
    tools = {"model": "toy", "messages": USER, "tools": [WEATHER]}
    [choice] = (await client.chat.completions.create(**functions)).choices
    called = choice.message.function_call
    assert (called.name, called.arguments, choice.finish_reason) == (
        "get_weather",
        '{"city": "Paris"}',
        "function_call",
    )
    assert choice.message.content == "I look." and choice.message.tool_calls is None
    await client.chat.completions.create(**tools)
    assert router.requests[0].prompt_token_ids == router.requests[1].prompt_token_ids
    chunks = [chunk.choices[0] async for chunk in await client.chat.completions.create(stream=True, **functions)]
    parts = [chunk.delta.function_call for chunk in chunks if chunk.delta.function_call]
    assert [part.name for part in parts if part.name] == ["get_weather"]
    assert "".join(part.arguments for part in parts) == '{"city": "Paris"}'
    assert chunks[-1].finish_reason == "function_call" and not any(chunk.delta.tool_calls for chunk in chunks)

    call = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    result = {"role": "function", "name": "get_weather", "content": "Rain"}
    old = [*USER, {"role": "assistant", "content": None, "function_call": call}, result]
    new = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "a", "content": "Rain"},
    ]
    await client.chat.completions.create(**functions | {"messages": old})
    await client.chat.completions.create(**tools | {"messages": new})
    assert router.requests[-1].prompt_token_ids == router.requests[-2].prompt_token_ids


async def test_a_function_can_be_demanded_and_forbidden(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    functions = [WEATHER["function"], CLOCK["function"]]
    say("</think>\n" + CALL)
    named = await ask(tool_http, tools=None, functions=functions, function_call={"name": "get_weather"})
    assert named.json()["choices"][0]["message"]["function_call"]["name"] == "get_weather"
    asked = await ask(tool_http, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    structures = [request.sampling.structure for request in router.requests]
    assert asked.status_code == 200 and structures[0] == structures[1] is not None
    await ask(tool_http, tools=None, functions=functions, function_call="none")
    await ask(tool_http, tools=None)
    assert router.requests[-1].prompt_token_ids == router.requests[-2].prompt_token_ids
    both = (await ask(tool_http, functions=functions)).json()["error"]
    assert both["param"] == "functions" and "tools" in both["message"]


async def test_an_answer_cut_off_in_a_call(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    tokens = say(CALL)
    choice = (await ask(tool_http, max_tokens=len(tokens) - 12)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    [call] = choice["message"]["tool_calls"]
    assert '{"city": "Paris"}'.startswith(call["function"]["arguments"]) and call["function"]["name"] == "get_weather"


async def test_choices_are_parsed_on_their_own(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    say(TEXT)
    choices = (await ask(tool_http, n=3)).json()["choices"]
    assert [len(choice["message"]["tool_calls"]) for choice in choices] == [2, 2, 2]
    assert len({call["id"] for choice in choices for call in choice["message"]["tool_calls"]}) == 6


async def test_logprobs_tell_all_tokens(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    tokens = say(TEXT)
    whole = (await ask(tool_http, logprobs=True)).json()["choices"][0]
    assert len(whole["logprobs"]["content"]) == len(tokens)
    events = (await ask(tool_http, logprobs=True, stream=True)).text.split("\n\n")[:-2]
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert [entry for chunk in chunks for entry in (chunk["logprobs"] or {"content": []})["content"]] == (
        whole["logprobs"]["content"]
    )


async def test_calls_are_counted(tool_http: httpx.AsyncClient, say: Callable[[str], list[int]]) -> None:
    before = metrics.TOOL_CALLS._value.get()
    say(TEXT)
    await ask(tool_http)
    assert metrics.TOOL_CALLS._value.get() == before + 2


def function(**fields: object) -> dict:
    return {"type": "function", "function": fields}


BAD = [
    ({"tool_choice": "required", "guided_regex": "a+"}, "tool_choice", "with a structure"),
    ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice", "none of the tools"),
    ({"tool_choice": "required", "tools": None}, "tool_choice", "no tools"),
    ({"tool_choice": "maybe"}, "tool_choice", ""),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, "tool_choice", ""),
    (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "nope"}}]},
            }
        },
        "tool_choice",
        "none of the tools",
    ),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "Two tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type", ""),
    ({"tools": [function(name="a b")]}, "tools[0].function.name", ""),
    ({"tools": [function(name="f", strict="yes")]}, "tools[0].function.strict", ""),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
        "tools[0].function.parameters",
        "",
    ),
    ({"tools": [CLOCK] * 129}, "tools", ""),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", ""),
]


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
async def glm_http(router: FakeRouterClient, tool_model: TextModel) -> AsyncIterator[httpx.AsyncClient]:
    """A model whose format of calls is not made of JSON."""
    app = create_app(make_service(router, tool_model, tool_parser="glm45"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def test_a_demanded_call_is_in_the_models_own_format(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say(f"<think>Hm.</think>{CALL}")
    whole = (await ask(tool_http, tool_choice=NAMED)).json()["choices"][0]
    [call] = whole["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    one, line_break = answer_part(router.requests[0].sampling.structure)["elements"]
    assert (one["type"], one["begin"], line_break["type"]) == ("tag", "<tool_call>", "regex")
    validator = jsonschema.Draft202012Validator(one["content"]["elements"][1]["json_schema"])
    assert validator.is_valid({"name": "get_weather", "arguments": {"city": "Paris"}})
    assert not validator.is_valid({"name": "get_time", "arguments": {}})
    stream = (await ask(tool_http, tool_choice=NAMED, stream=True)).text
    assert stream.count('"name":"get_weather"') == 1 and '"finish_reason":"tool_calls"' in stream


def calls_of(choice: dict) -> list[tuple[str, object]]:
    calls = choice["message"]["tool_calls"]
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


WRONG_CALLS = [
    {"name": "f", "arguments": {}},
    {"name": "get_weather", "arguments": {}},
    {"name": "get_time"},
    {"name": "get_time", "arguments": {"more": 1}},
]


@pytest.mark.parametrize("parallel", [True, False])
async def test_any_call_can_be_demanded(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]], parallel: bool
) -> None:
    say(f'<tool_call>{{"name": "get_time", "arguments": {{}}}}</tool_call>{CALL}')
    whole = (await ask(tool_http, tool_choice="required", parallel_tool_calls=parallel)).json()["choices"][0]
    assert calls_of(whole) == [("get_time", {}), ("get_weather", {"city": "Paris"})]
    part = answer_part(router.requests[0].sampling.structure)
    assert part.get("most") == (8 if parallel else None)
    one = (part["content"] if parallel else part)["elements"][0]
    validator = jsonschema.Draft202012Validator(one["content"]["elements"][1]["json_schema"])
    assert all(validator.is_valid({"name": name, "arguments": made}) for name, made in calls_of(whole))
    assert not any(map(validator.is_valid, WRONG_CALLS))


@pytest.mark.parametrize("parallel", [True, False])
async def test_any_call_of_another_format_is_json(
    glm_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]], parallel: bool
) -> None:
    say('[{"name": "get_time", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "Oslo"}}]')
    whole = (await ask(glm_http, tool_choice="required", parallel_tool_calls=parallel)).json()["choices"][0]
    assert calls_of(whole) == [("get_time", {}), ("get_weather", {"city": "Oslo"})]
    schema = answer_part(router.requests[0].sampling.structure)["json_schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    calls = [{"name": name, "arguments": made} for name, made in calls_of(whole)]
    assert validator.is_valid(calls[:1]) and validator.is_valid(calls) == parallel
    assert not any(validator.is_valid(wrong) for wrong in ([], *([call] for call in WRONG_CALLS)))


async def test_a_named_call_of_another_format_is_its_arguments(
    glm_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    tokens = say('{"city": "Paris"}')
    assert calls_of((await ask(glm_http, tool_choice=NAMED)).json()["choices"][0]) == [
        ("get_weather", {"city": "Paris"})
    ]
    part = answer_part(router.requests[0].sampling.structure)
    assert part["json_schema"] == {**WEATHER["function"]["parameters"], "additionalProperties": False}
    choice = (await ask(glm_http, tool_choice=NAMED, max_tokens=len(tokens) - 3)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert '{"city": "Paris"}'.startswith(choice["message"]["tool_calls"][0]["function"]["arguments"])


def allowing(mode: str, *names: str) -> dict:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


async def test_the_model_is_told_of_allowed_tools_only(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, tool_model: TextModel
) -> None:
    for choice in (allowing("auto", "get_time"), None, allowing("required", "get_time")):
        tools = [WEATHER, CLOCK] if choice else [CLOCK]
        assert (await ask(tool_http, tools=tools, tool_choice=choice)).status_code == 200
    allowed, alone, demanded = router.requests
    assert list(allowed.prompt_token_ids) == list(alone.prompt_token_ids) == list(demanded.prompt_token_ids)
    assert allowed.sampling.structure is None
    assert "get_time" in demanded.sampling.structure.text and "get_weather" not in demanded.sampling.structure.text


async def test_references_within_a_tools_schema_hold(glm_http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    parameters = {"properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "$defs": {"A": {"type": "integer"}}}
    tools = [function(name="f", parameters=parameters, strict=True), CLOCK]
    assert (await ask(glm_http, tools=tools, tool_choice="required")).status_code == 200
    part = answer_part(router.requests[0].sampling.structure)
    assert not part["lenient"]
    validator = jsonschema.Draft202012Validator(part["json_schema"])
    assert validator.is_valid([{"name": "f", "arguments": {"a": 1}}])
    assert not validator.is_valid([{"name": "f", "arguments": {"a": "x"}}])


@pytest.mark.parametrize("fields, param, message", BAD, ids=lambda value: str(value)[:50])
async def test_bad_fields_are_named(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, fields: dict, param: str, message: str
) -> None:
    response = await ask(tool_http, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].startswith(param) and message in error["message"]
    assert not router.requests


async def test_a_model_without_tools_says_so(http: httpx.AsyncClient) -> None:
    error = (await ask(http)).json()["error"]
    assert error["param"] == "tools" and "calls no tools" in error["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_parsers_can_be_switched_off(
    router: FakeRouterClient, tool_model: TextModel, say: Callable[[str], list[int]], stream: bool
) -> None:
    service = make_service(router, tool_model, tool_parser="none", reasoning_parser="none")
    say(TEXT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://g") as http:
        assert (await ask(http)).status_code == 400
        answer = await ask(http, tools=None, stream=stream)
    assert "reasoning_content" not in answer.text
    assert stream or answer.json()["choices"][0]["message"]["content"] == TEXT


async def test_leaving_in_the_middle_of_a_call_cancels(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say(CALL * 20)
    router.gate = asyncio.Event()
    router.gate.set()
    stream = await client.chat.completions.create(model="toy", messages=USER, tools=[WEATHER], stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.tool_calls:
            router.gate.clear()
            break
    await stream.close()
    await until(lambda: router.running == 0)
    assert router.cancelled == 1


def test_outside_requests_are_understood(tool_service: Service, conformance: Path) -> None:
    """Questions of the Berkeley function-calling leaderboard, as OpenAI chat requests."""
    for path in sorted((conformance / "tools").glob("*.requests.jsonl")):
        for line in path.read_text().splitlines()[:60]:
            body = json.loads(line)
            body["model"] = "toy"
            asked = parse(ChatRequest, body)
            prompt = read_prompt(tool_service, asked.conversation())
            assert list(prompt.message.tools) == [tool["function"]["name"] for tool in body["tools"]]
            assert all(f"{name}(" in prompt.message.prompt for name in prompt.message.tools)


async def test_a_message_that_is_continued_has_its_structure_at_once(
    tool_http: httpx.AsyncClient, router: FakeRouterClient
) -> None:
    begun = [*USER, {"role": "assistant", "content": "In JSON:"}]
    fields = {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "response_format": {"type": "json_object"},
    }
    assert (await ask(tool_http, tools=None, messages=begun, **fields)).status_code == 200
    assert router.requests[-1].sampling.structure == Structure("json_object")
