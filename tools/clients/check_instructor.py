"""instructor: every way in which it asks OpenAI's API for an object."""

from __future__ import annotations

from typing import Literal

import instructor
from checks import API_KEY, BASE_URL, MODEL, run
from openai import OpenAI
from pydantic import BaseModel

MESSAGES = [{"role": "user", "content": "Ann is 30 and likes red."}]


class Person(BaseModel):
    """Small enough for a model that knows nothing: it cannot go on for ever."""

    name: Literal["Ann", "Bob"]
    age: Literal[10, 20, 30]
    color: Literal["red", "green"]


def client(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0), mode=mode)


def ask(mode: instructor.Mode) -> None:
    fields = {"model": MODEL, "messages": MESSAGES, "max_retries": 0, "temperature": 0}
    assert isinstance(client(mode).chat.completions.create(response_model=Person, **fields), Person)


def tools() -> None:
    ask(instructor.Mode.TOOLS)


def tools_strict() -> None:
    ask(instructor.Mode.TOOLS_STRICT)


def json_schema() -> None:
    ask(instructor.Mode.JSON_SCHEMA)


def partial() -> None:
    made = client(instructor.Mode.TOOLS).chat.completions.create_partial(
        model=MODEL, response_model=Person, messages=MESSAGES, max_retries=0
    )
    assert list(made)[-1].age is not None


def responses() -> None:
    made = client(instructor.Mode.RESPONSES_TOOLS).responses.create(
        model=MODEL, input=MESSAGES, response_model=Person, max_retries=0
    )
    assert isinstance(made, Person)


run(tools, tools_strict, json_schema, partial, responses)
