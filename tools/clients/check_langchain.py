"""langchain-openai: chats, streams, tools, structured output, over chat completions and over responses."""

from __future__ import annotations

from typing import Literal

from checks import API_KEY, BASE_URL, MODEL, run
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    """Small enough for a model that knows nothing: it cannot go on for ever."""

    name: Literal["Ann", "Bob"]
    age: Literal[10, 20, 30]


@tool
def add(a: Literal[1, 2, 3], b: Literal[1, 2, 3]) -> int:
    """Add two numbers."""
    return a + b


def chat(**fields: object) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=BASE_URL, api_key=API_KEY, max_retries=0, max_tokens=200, **fields)


def invoke() -> None:
    answer = chat().invoke("Say hello.")
    assert answer.content and answer.usage_metadata["output_tokens"] > 0


def stream() -> None:
    whole: AIMessageChunk | None = None
    for chunk in chat(stream_usage=True).stream("Say hello."):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None and whole.content and whole.usage_metadata["total_tokens"] > 0


def batch() -> None:
    assert all(answer.content for answer in chat().batch(["Say hello.", "Say goodbye."]))


def tools() -> None:
    bound = chat().bind_tools([add], tool_choice="add")
    asked = HumanMessage("What is 2 + 3?")
    call = bound.invoke([asked])
    assert [made["name"] for made in call.tool_calls] == ["add"] and set(call.tool_calls[0]["args"]) <= {"a", "b"}
    results = [ToolMessage(str(made["args"]), tool_call_id=made["id"]) for made in call.tool_calls]
    chat().bind_tools([add], tool_choice="none").invoke([asked, call, *results])


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat().with_structured_output(Person, method=method).invoke("Ann is 30."), Person)


def responses() -> None:
    model = chat(use_responses_api=True, output_version="responses/v1")
    first = model.invoke("Say hello.")
    assert first.text and first.response_metadata["id"].startswith("resp_")
    second = model.invoke("And again.", previous_response_id=first.response_metadata["id"])
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]
    assert "".join(chunk.text for chunk in model.stream("Say hello."))
    assert isinstance(model.with_structured_output(Person).invoke("Ann is 30."), Person)


def responses_with_tools() -> None:
    call = chat(use_responses_api=True).bind_tools([add], tool_choice="add").invoke("What is 2 + 3?")
    assert [made["name"] for made in call.tool_calls] == ["add"]


def completions() -> None:
    assert OpenAI(model=MODEL, base_url=BASE_URL, api_key=API_KEY, max_tokens=8).invoke("Once upon a time")


run(invoke, stream, batch, tools, structured, responses, responses_with_tools, completions)
