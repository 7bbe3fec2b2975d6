"""The Responses API through the openai package, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from unittest.mock import AsyncMock

import httpx
import openai
import pydantic
import pytest
from fake_router import FakeRouterClient, until
from gateway_site import make_service
from structures import answer_part

from baton.core.errors import Overloaded, StoreUnavailable, Unavailable
from baton.gateway import metrics
from baton.gateway.app import create_app
from baton.gateway.openai.responses import background
from baton.gateway.service import Service
from baton.gateway.tenants import Caller, acting_for
from baton.gateway.text_model import TextModel
from baton.runtime.lifecycle import cancel_and_wait

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
TEXT = f"<think>I need the weather.</think>I look. {CALL}{CALL}"


async def ask(http: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await http.post("/v1/responses", json={"model": "toy", "input": "Hello.", "max_output_tokens": 8, **fields})


def http_of(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://gateway")


def prompt(router: FakeRouterClient, service: Service) -> str:
    """What the model was told last, special tokens and all."""
    tokenizer = service.model.tokenizer
    pieces = (
        tokenizer.token_name(id).encode() if tokenizer.is_special(id) else tokenizer.token_bytes(id)
        for id in router.requests[-1].prompt_token_ids
    )
    return b"".join(pieces).decode()


def without_ids(items: list[dict]) -> list[dict]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]


async def test_the_whole_answer(client: openai.AsyncOpenAI, say: Callable[[str], list[int]]) -> None:
    tokens = say(TEXT)
    answer = await client.responses.create(
        model="toy", input="Weather in Paris?", tools=[WEATHER], metadata={"a": "b"}, temperature=0.5
    )
    reasoning, message, first, second = answer.output
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert reasoning.content[0].text == "I need the weather."
    assert answer.output_text == message.content[0].text == "I look."
    assert first.name == second.name == "get_weather" and json.loads(first.arguments) == {"city": "Paris"}
    assert first.call_id != second.call_id and len({item.id for item in answer.output}) == 4
    assert {item.status for item in answer.output} == {answer.status} == {"completed"}
    assert (answer.metadata, answer.temperature, answer.tool_choice) == ({"a": "b"}, 0.5, "auto")
    assert answer.tools[0].name == "get_weather" and answer.completed_at >= answer.created_at
    usage = answer.usage
    assert usage.output_tokens == len(tokens) and usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_the_stream(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]], size: int
) -> None:
    say(TEXT)
    router.tokens_per_event = size
    fields = {"model": "toy", "input": "Weather in Paris?", "tools": [WEATHER]}
    events = [event async for event in await client.responses.create(stream=True, **fields)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    once = [kind for index, kind in enumerate(kinds) if not kind.endswith("delta") or kind != kinds[index - 1]]
    item, part = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
    call = [item[0], "function_call_arguments.delta", "function_call_arguments.done", part[1]]
    assert once == [
        "created", "in_progress",
        *item, "reasoning_text.delta", "reasoning_text.done", *part,
        *item, "output_text.delta", "output_text.done", *part,
        *call, *call, "completed",
    ]  # fmt: skip
    for kind, done in (("output_text", "text"), ("reasoning_text", "text"), ("function_call_arguments", "arguments")):
        for end in (event for event in events if event.type == f"response.{kind}.done"):
            deltas = [e.delta for e in events if e.type == f"response.{kind}.delta" and e.item_id == end.item_id]
            assert "".join(deltas) == getattr(end, done) != ""
    final = events[-1].response
    assert {event.response.id for event in events if hasattr(event, "response")} == {final.id}
    assert [e.item for e in events if e.type == "response.output_item.done"] == final.output
    assert await client.responses.retrieve(final.id) == final
    whole = await client.responses.create(**fields)
    assert without_ids(whole.model_dump()["output"]) == without_ids(final.model_dump()["output"])


async def test_the_stream_helper_parses(client: openai.AsyncOpenAI, say: Callable[[str], list[int]]) -> None:
    class Pick(pydantic.BaseModel):
        color: str

    say('{"color": "red"}')
    async with client.responses.stream(model="toy", input="Pick.", text_format=Pick) as stream:
        assert [event.type async for event in stream][-1] == "response.completed"
        assert (await stream.get_final_response()).output_parsed == Pick(color="red")


async def test_a_schema_is_enforced(tool_http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    format = {"type": "json_schema", "name": "thing", "schema": schema, "strict": True}
    body = (await ask(tool_http, text={"format": format})).json()
    part = answer_part(router.requests[-1].sampling.structure)
    assert (part["json_schema"], part["lenient"]) == (schema, False)
    assert body["text"]["format"] == format
    await ask(tool_http, text={"format": {**format, "strict": False}})
    assert answer_part(router.requests[-1].sampling.structure)["lenient"]
    await ask(tool_http, text={"format": {"type": "json_object"}})
    assert answer_part(router.requests[-1].sampling.structure)["json_schema"] == {"type": "object"}


async def test_a_demanded_call(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say(CALL)
    choice = {"type": "function", "name": "get_weather"}
    body = (await ask(tool_http, tools=[WEATHER], tool_choice=choice, max_output_tokens=100)).json()
    assert [(item["type"], item["arguments"]) for item in body["output"]] == [("function_call", '{"city": "Paris"}')]
    assert body["tool_choice"] == choice and router.requests[-1].sampling.structure is not None


async def test_a_demanded_call_has_no_format(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    """The format is that of messages; a call that is demanded leaves none."""
    say(CALL)
    format = {"type": "json_schema", "name": "a", "schema": {"type": "object", "properties": {"other": {}}}}
    choice = {"type": "function", "name": "get_weather"}
    fields = {"tools": [WEATHER], "tool_choice": choice, "text": {"format": format}, "max_output_tokens": 99}
    body = (await ask(tool_http, **fields)).json()
    assert [item["type"] for item in body["output"]] == ["function_call"]
    assert "city" in router.requests[-1].sampling.structure.text


async def test_a_conversation_goes_on(
    tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    """The prompt is that of the same conversation as chat messages."""
    say(f"<think>Hm.</think>I look. {CALL}")
    fields = {"tools": [WEATHER], "max_output_tokens": 99}
    first = (await ask(tool_http, instructions="Be brief.", input="Weather?", **fields)).json()
    call_id = first["output"][-1]["call_id"]
    say("It is warm.")
    output = {"type": "function_call_output", "call_id": call_id, "output": "21 C"}
    second = (await ask(tool_http, previous_response_id=first["id"], input=[output], **fields)).json()
    assert second["previous_response_id"] == first["id"] and second["instructions"] is None
    third = await ask(
        tool_http, previous_response_id=second["id"], input="Thanks.", tools=[WEATHER], instructions="Hi."
    )
    continued = prompt(router, tool_service)
    call = {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "system", "content": "Hi."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "21 C"},
        {"role": "assistant", "content": "It is warm."},
        {"role": "user", "content": "Thanks."},
    ]
    nested = {"type": "function", "function": {key: value for key, value in WEATHER.items() if key != "type"}}
    chat = {"model": "toy", "messages": messages, "tools": [nested], "max_tokens": 1}
    assert (await tool_http.post("/v1/chat/completions", json=chat)).status_code == third.status_code == 200
    assert continued == prompt(router, tool_service)


async def test_items_of_an_answer_can_be_sent_back(
    client: openai.AsyncOpenAI, tool_service: Service, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say(TEXT)
    first = await client.responses.create(model="toy", input="Weather?", tools=[WEATHER])
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": [{"type": "input_text", "text": "21 C"}]}
        for item in first.output[2:]
    ]
    await client.responses.create(
        model="toy",
        input=[{"role": "user", "content": "Weather?"}, *first.output, *results],
        tools=[WEATHER],
        store=False,
    )
    sent_back = prompt(router, tool_service)
    await client.responses.create(model="toy", input=results, previous_response_id=first.id, tools=[WEATHER])
    assert prompt(router, tool_service) == sent_back
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    asked = {"type": "item_reference", "id": (await client.responses.input_items.list(first.id)).data[0].id}
    await client.responses.create(model="toy", input=[asked, *references, *results], tools=[WEATHER])
    assert prompt(router, tool_service) == sent_back


async def test_instructions_join_a_system_message(
    tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient
) -> None:
    messages = [{"role": "developer", "content": "Second."}, {"role": "user", "content": "Hello."}]
    await ask(tool_http, instructions="First.", input=messages)
    assert prompt(router, tool_service).startswith("<|system|>First.\n\nSecond.<|end|><|user|>")


async def test_an_answer_that_was_cut_off(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    room = len(say(f"I look. {CALL[:-25]}"))
    say(f"I look. {CALL}")
    body = (await ask(tool_http, tools=[WEATHER], max_output_tokens=room)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]
    streamed = (await ask(tool_http, tools=[WEATHER], max_output_tokens=room, stream=True)).text
    assert streamed.rstrip().splitlines()[-2] == "event: response.incomplete"
    router.script = router.alphabet[:1]
    assert (await ask(tool_http, previous_response_id=body["id"])).status_code == 200


async def test_an_answer_that_says_nothing_is_an_empty_message(
    tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient
) -> None:
    router.script = list(tool_service.model.eos_token_ids)[:1]
    [item] = (await ask(tool_http)).json()["output"]
    assert item["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]


async def test_logprobs_are_those_of_the_content(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say("<think>Hm.</think>It is warm.")
    fields = {"model": "toy", "input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = await client.responses.create(**fields)
    entries = whole.output[1].content[0].logprobs
    assert bytes(byte for entry in entries for byte in entry.bytes).decode().strip() == "It is warm."
    assert {len(entry.top_logprobs) for entry in entries} == {2}
    events = [event async for event in await client.responses.create(stream=True, **fields)]
    streamed = [e.token for event in events if event.type == "response.output_text.delta" for e in event.logprobs]
    assert streamed == [entry.token for entry in entries]
    assert (await client.responses.create(model="toy", input="Hi")).output[1].content[0].logprobs == []


async def test_effort_reaches_the_template(tool_http: httpx.AsyncClient, tool_service: Service) -> None:
    seen: list[dict] = []
    render = tool_service.model.template._render
    tool_service.model.template._render = lambda messages, names: (seen.append(names), render(messages, names))[1]
    try:
        await ask(tool_http, reasoning={"effort": "low"})
        await ask(tool_http, reasoning={"effort": "none"})
    finally:
        del tool_service.model.template._render
    assert seen[0]["reasoning_effort"] == "low" and seen[1]["enable_thinking"] is False


async def test_what_is_kept(client: openai.AsyncOpenAI, tool_service: Service, router: FakeRouterClient) -> None:
    router.script = router.alphabet[:3]
    kept = await client.responses.create(model="toy", input="Hello.")
    lost = await client.responses.create(model="toy", input="Hello.", store=False)
    assert await client.responses.retrieve(kept.id) == kept and (kept.store, lost.store) == (True, False)
    for gone in (lost.id, "resp_none"):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(gone)
    await client.responses.delete(kept.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            await call(kept.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="toy", input="More.", previous_response_id=kept.id)
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


async def test_input_items(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    router.script = router.alphabet[:3]
    first = await client.responses.create(model="toy", input=[{"role": "user", "content": "One."}] * 3)
    second = await client.responses.create(model="toy", input="Two.", previous_response_id=first.id)
    items = [item async for item in client.responses.input_items.list(second.id, limit=2, order="asc")]
    assert [item.role for item in items] == ["user"] * 3 + ["assistant", "user"]
    assert [item async for item in client.responses.input_items.list(second.id)] == items[::-1]
    page = await client.responses.input_items.list(second.id, limit=2, order="asc", after=items[0].id)
    assert page.data == items[1:3] and page.has_more
    for wrong in ({"limit": 0}, {"order": "up"}, {"after": "msg_none"}):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.input_items.list(second.id, **wrong)
        assert caught.value.param == next(iter(wrong))


async def test_tenants_do_not_see_each_others_responses(tool_http: httpx.AsyncClient) -> None:
    with acting_for(Caller("a")):
        id = (await ask(tool_http)).json()["id"]
        assert (await tool_http.get(f"/v1/responses/{id}")).status_code == 200
    with acting_for(Caller("b")):
        assert (await tool_http.get(f"/v1/responses/{id}")).status_code == 404
        assert (await ask(tool_http, previous_response_id=id)).status_code == 400
        reference = [{"type": "item_reference", "id": f"msg_{id.removeprefix('resp_')}_0"}]
        assert (await ask(tool_http, input=reference)).json()["error"]["param"] == "input[0].id"
        assert (await tool_http.delete(f"/v1/responses/{id}")).status_code == 404


async def test_counting_tokens(client: openai.AsyncOpenAI) -> None:
    fields = {"model": "toy", "input": "Hello there.", "instructions": "Be brief.", "tools": [WEATHER]}
    counted = await client.responses.input_tokens.count(**fields)
    assert counted.input_tokens == (await client.responses.create(max_output_tokens=1, **fields)).usage.input_tokens


async def test_truncation(tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient) -> None:
    """Of a conversation that is too long, the oldest turns are left out, and no more than must be."""
    turns = [
        item
        for number in range(8)
        for item in (
            {"role": "user", "content": f"question {number} " * 100},
            {"role": "assistant", "content": f"answer {number}"},
        )
    ]
    input = [{"role": "system", "content": "Standing orders."}, *turns, {"role": "user", "content": "Last."}]
    router._model = type(router._model)("toy", 1 << 30, "revision-1", True)
    refused = await ask(tool_http, input=input)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "input"
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    body = (await ask(tool_http, input=input, truncation="auto")).json()
    assert body["truncation"] == "auto" and body["status"] in ("completed", "incomplete")
    told = prompt(router, tool_service)
    assert told.startswith("<|system|>Standing orders.<|end|><|user|>question ") and "Last." in told
    kept = [number for number in range(8) if f"question {number} " in told]
    assert kept and kept == list(range(kept[0], 8)) and kept[0] > 0
    per_turn = len(router.requests[-1].prompt_token_ids) / len(kept)
    room = tool_service.context_tokens() - len(router.requests[-1].prompt_token_ids)
    assert room < 1.2 * per_turn
    listed = (await tool_http.get(f"/v1/responses/{body['id']}/input_items?limit=100")).json()
    assert len(listed["data"]) == len(input)
    alone = await ask(tool_http, input="word " * 100_000, truncation="auto")
    assert alone.json()["error"]["code"] == "context_length_exceeded"


async def test_a_background_response(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    say("It is warm.")
    router.gate = asyncio.Event()
    started = await client.responses.create(model="toy", input="Hi", background=True)
    assert started.status == "queued" and started.background
    await until(lambda: router.running == 1)
    assert (await client.responses.retrieve(started.id)).status == "in_progress"
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="toy", input="More", previous_response_id=started.id)
    router.gate.set()
    while (done := await client.responses.retrieve(started.id)).status == "in_progress":
        await asyncio.sleep(0.005)
    assert (done.status, done.output_text) == ("completed", "It is warm.")
    with pytest.raises(openai.BadRequestError, match="is completed"):
        await client.responses.cancel(started.id)


async def test_a_background_response_is_streamed_and_goes_on_without_its_client(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    """Its events can be had from anywhere on, while it runs and afterwards."""
    say("It is warm.")
    router.gate = asyncio.Event()
    stream = await client.responses.create(model="toy", input="Hi", background=True, stream=True)
    first = [await anext(stream) for _ in range(3)]
    assert [event.type for event in first] == ["response.created", "response.queued", "response.in_progress"]
    id = first[0].response.id
    await stream.close()
    again = await client.responses.retrieve(id, stream=True, starting_after=1)
    router.gate.set()
    rest = [event async for event in again]
    assert [event.sequence_number for event in rest] == list(range(2, 2 + len(rest)))
    assert rest[-1].type == "response.completed" and rest[-1].response.output_text == "It is warm."
    kept = [event async for event in await client.responses.retrieve(id, stream=True)]
    assert kept[:3] == first and kept[2:] == rest and router.cancelled == 0
    with pytest.raises(openai.BadRequestError):
        await client.responses.retrieve(id, stream=True, starting_after="x")
    await client.responses.delete(id)
    with pytest.raises(openai.NotFoundError):
        [event async for event in await client.responses.retrieve(id, stream=True)]


async def test_another_gateway_streams_a_background_response_when_it_is_over(
    router: FakeRouterClient, model: TextModel, say: Callable[[str], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_LOOK_S", 0.01)
    one, other = make_service(router, model), make_service(router, model)
    other.records = one.records
    say("It is warm.")
    router.gate = asyncio.Event()
    async with http_of(one) as here, http_of(other) as there:
        started = asyncio.create_task(ask(here, background=True, stream=True))
        await until(lambda: router.running == 1)
        [task] = [task for task in asyncio.all_tasks() if task.get_name().startswith("resp_")]
        elsewhere = asyncio.create_task(there.get(f"/v1/responses/{task.get_name()}?stream=true"))
        await asyncio.sleep(0.02)
        router.gate.set()
        texts = [response.text.replace(": keep-alive\n\n", "") for response in (await started, await elsewhere)]
    assert texts[0] == texts[1] and texts[0].count("event: response.completed") == 1
    await one.jobs.stop()


async def test_responses_without_events_are_not_streamed_again(http: httpx.AsyncClient) -> None:
    id = (await ask(http)).json()["id"]
    error = (await http.get(f"/v1/responses/{id}?stream=true")).json()["error"]
    assert error["param"] == "stream" and "background" in error["message"]
    assert (await http.get("/v1/responses/resp_none?stream=true")).status_code == 404


async def test_a_failure_is_the_last_event(tool_http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    router.down = Overloaded("too much")
    text = (await ask(tool_http, background=True, stream=True)).text
    assert text.count("event: response.failed") == 1 and "too much" in text.rsplit("event: ", 1)[1]


async def test_cancelling_a_background_response(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    router.gate = asyncio.Event()
    started = await client.responses.create(model="toy", input="Hi", background=True)
    await until(lambda: router.running == 1)
    assert (await client.responses.cancel(started.id)).status == "cancelled"
    assert (router.running, router.cancelled) == (0, 1)
    assert (await client.responses.retrieve(started.id)).status == "cancelled"
    assert (await client.responses.cancel(started.id)).status == "cancelled"
    router.gate.set()
    sync = await client.responses.create(model="toy", input="Hi", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        await client.responses.cancel(sync.id)


async def test_the_stream_of_a_cancelled_response_ends(
    client: openai.AsyncOpenAI, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    """With the last event that OpenAI describes for an answer that is not whole, for whoever reads it, and whenever."""
    say("It is warm.")
    router.gate = asyncio.Event()
    stream = await client.responses.create(model="toy", input="Hi", background=True, stream=True)
    id = (first := await anext(stream)).response.id
    await until(lambda: router.running == 1)
    follower = await client.responses.retrieve(id, stream=True, starting_after=0)
    cancelled = await client.responses.cancel(id)
    rest = [event async for event in stream]
    assert rest == [event async for event in follower] and rest[-1].response == cancelled
    assert (rest[-1].type, cancelled.status) == ("response.incomplete", "cancelled")
    assert cancelled.usage.input_tokens > 0 and cancelled == await client.responses.retrieve(id)
    assert [event async for event in await client.responses.retrieve(id, stream=True)] == [first, *rest]


async def test_what_a_cancelled_response_has_said_is_kept(
    tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient, say: Callable[[str], list[int]]
) -> None:
    class OpenTwice(asyncio.Event):
        async def wait(self) -> bool:
            return router.sent < 2 or await super().wait()

    say("It is warm.")
    router.gate = OpenTwice()
    reader = asyncio.create_task(ask(tool_http, background=True, stream=True))
    await until(lambda: router.sent == 2)
    [id] = [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("resp_")]
    response = (await tool_http.post(f"/v1/responses/{id}/cancel")).json()
    [item] = response["output"]
    assert item["status"] == "incomplete" and "It is warm.".startswith(item["content"][0]["text"])
    kinds = [line.removeprefix("event: response.") for line in (await reader).text.splitlines() if line[:6] == "event:"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]


@pytest.mark.parametrize("written", [True, False])
async def test_a_response_is_cancelled_over_another_gateway_than_the_one_where_it_runs(
    router: FakeRouterClient, model: TextModel, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Readers there are told all its events, and at least that it is over where those are not `written`."""
    monkeypatch.setattr(background, "_LOOK_S", 0.01)
    one, other = make_service(router, model), make_service(router, model)
    other.records = one.records
    router.gate = asyncio.Event()
    async with http_of(one) as here, http_of(other) as there:
        started = asyncio.create_task(ask(here, background=True, stream=True))
        await until(lambda: router.running == 1)
        [task] = [task for task in asyncio.all_tasks() if task.get_name().startswith("resp_")]
        id = task.get_name()
        elsewhere = asyncio.create_task(there.get(f"/v1/responses/{id}?stream=true"))
        if not written:
            monkeypatch.setattr(background.BackgroundResponses, "_tell", AsyncMock())
        await there.post(f"/v1/responses/{id}/cancel")
        text = (await elsewhere).text.replace(": keep-alive\n\n", "")
        assert text.count("event: response.incomplete") == 1 and '"status":"cancelled"' in text
        if written:
            assert text == (await started).text.replace(": keep-alive\n\n", "")
        await cancel_and_wait(started)
    await one.jobs.stop()


async def test_a_background_response_that_fails(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    router.fail_after = (2, Overloaded("too busy"))
    id = (await client.responses.create(model="toy", input="Hi", background=True)).id
    while (failed := await client.responses.retrieve(id)).status in ("queued", "in_progress"):
        await asyncio.sleep(0.005)
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "rate_limit_exceeded", "too busy")


async def test_background_responses_fail_when_the_gateway_stops(
    tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient
) -> None:
    router.gate = asyncio.Event()
    id = (await ask(tool_http, background=True)).json()["id"]
    await until(lambda: router.running == 1)
    await tool_service.jobs.stop()
    assert (await tool_http.get(f"/v1/responses/{id}")).json()["status"] == "failed" and router.running == 0


@pytest.mark.parametrize("how", ["deleted", "cancelled"])
async def test_a_background_response_that_another_gateway_gave_up_is_stopped(
    tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient,
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(background, "_LOOK_S", 0.01)
    router.gate = asyncio.Event()
    id = (await ask(tool_http, background=True)).json()["id"]
    await until(lambda: router.running == 1)
    here, tool_service.jobs._tasks = tool_service.jobs._tasks, {}  # as another gateway, which does not run it
    if how == "deleted":
        await tool_http.delete(f"/v1/responses/{id}")
    else:
        await tool_http.post(f"/v1/responses/{id}/cancel")
    tool_service.jobs._tasks = here
    await until(lambda: router.running == 0 and not here)
    after = await tool_http.get(f"/v1/responses/{id}")
    assert after.status_code == 404 if how == "deleted" else after.json()["status"] == "cancelled"


async def test_a_background_response_whose_gateway_was_killed(
    tool_http: httpx.AsyncClient, tool_service: Service, router: FakeRouterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.gate = asyncio.Event()
    id = (await ask(tool_http, background=True)).json()["id"]
    await until(lambda: router.running == 1)
    late = background.time.time() + tool_service.settings.request_timeout_s + 60
    monkeypatch.setattr(background.time, "time", lambda: late)
    assert (await tool_http.get(f"/v1/responses/{id}")).json()["status"] == "failed"
    await tool_service.close()


async def test_a_stream_that_fails(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    router.fail_after = (3, Unavailable("worker lost"))
    events = [event async for event in await client.responses.create(model="toy", input="Hi", stream=True)]
    failed = events[-1]
    assert failed.type == "response.failed" and failed.response.error.code == "server_error"
    assert failed.sequence_number == len(events) - 1
    router.fail_after = (0, Overloaded("too busy"))
    with pytest.raises(openai.RateLimitError):
        await client.responses.create(model="toy", input="Hi", stream=True)


async def test_an_answer_that_cannot_be_kept_is_an_answer(
    tool_http: httpx.AsyncClient, tool_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailable("Redis is away")

    monkeypatch.setattr(tool_service.records, "put", fail)
    monkeypatch.setattr(tool_service.records, "get", fail)
    before = metrics.RESPONSES_NOT_KEPT._value.get()
    assert (await ask(tool_http)).status_code == 200
    assert metrics.RESPONSES_NOT_KEPT._value.get() == before + 1
    assert (await ask(tool_http, previous_response_id="resp_1")).status_code == 503
    assert (await ask(tool_http, background=True)).status_code == 503


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "king", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "["}]}, "input[0].arguments"),
        ({"input": [{"type": "item_reference", "id": "msg_x_0"}]}, "input[0].id"),
        ({"model": "other"}, "model"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "nothing"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"background": True, "store": False}, "store"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ],
)
async def test_wrong_requests(tool_http: httpx.AsyncClient, fields: dict, param: str) -> None:
    answer = await ask(tool_http, **fields)
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert answer.json()["error"]["param"] == param, answer.text
