"""litellm: completions of both kinds, streams, tools, structured output, responses, as an OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Literal

import litellm
from checks import API_KEY, BASE_URL, MODEL, run
from pydantic import BaseModel

litellm.telemetry = False
SERVER = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": API_KEY, "max_retries": 0}
HELLO = [{"role": "user", "content": "Say hello."}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2, 3]}, "b": {"enum": [1, 2, 3]}},
            "required": ["a", "b"],
        },
    },
}


class Person(BaseModel):
    """Small enough for a model that knows nothing: it cannot go on for ever."""

    name: Literal["Ann", "Bob"]
    age: Literal[10, 20, 30]


def chat() -> None:
    answer = litellm.completion(messages=HELLO, max_tokens=50, **SERVER)
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 0


def stream() -> None:
    chunks = list(litellm.completion(messages=HELLO, max_tokens=50, stream=True, **SERVER))
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content


def tools() -> None:
    answer = litellm.completion(messages=HELLO, tools=[ADD], tool_choice="required", max_tokens=200, **SERVER)
    [call, *_] = answer.choices[0].message.tool_calls
    assert call.function.name == "add" and set(json.loads(call.function.arguments)) == {"a", "b"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "5"}
    followed = [*HELLO, answer.choices[0].message.model_dump(exclude_none=True), result]
    assert litellm.completion(messages=followed, max_tokens=50, **SERVER).choices


def structured() -> None:
    answer = litellm.completion(messages=HELLO, response_format=Person, max_tokens=200, **SERVER)
    Person.model_validate_json(answer.choices[0].message.content)


def text() -> None:
    server = {**SERVER, "model": f"text-completion-openai/{MODEL}"}
    assert litellm.text_completion(prompt="Once upon a time", max_tokens=8, **server).choices[0].text


def responses() -> None:
    answer = litellm.responses(input="Say hello.", max_output_tokens=50, **SERVER)
    assert answer.status in ("completed", "incomplete") and answer.output
    kinds = [event.type for event in litellm.responses(input="Hi.", max_output_tokens=20, stream=True, **SERVER)]
    assert kinds[-1] in ("response.completed", "response.incomplete")


def errors() -> None:
    for wrong, expected in (
        ({"model": "openai/no-such-model"}, litellm.NotFoundError),
        ({"temperature": 9}, litellm.BadRequestError),
        ({"messages": [{"role": "user", "content": "word " * 100_000}]}, litellm.ContextWindowExceededError),
    ):
        try:
            litellm.completion(**{"messages": HELLO, "max_tokens": 5, **SERVER, **wrong})
        except expected:
            continue
        raise AssertionError(f"{expected.__name__} was expected of {list(wrong)}")


run(chat, stream, tools, structured, text, responses, errors)
