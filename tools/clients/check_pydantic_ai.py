"""pydantic-ai: agents with typed outputs and tools, over chat completions and over responses."""

from __future__ import annotations

import asyncio
from typing import Literal

from checks import API_KEY, BASE_URL, MODEL, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider(base_url=BASE_URL, api_key=API_KEY)
MODELS = (OpenAIChatModel(MODEL, provider=PROVIDER), OpenAIResponsesModel(MODEL, provider=PROVIDER))


class Person(BaseModel):
    """Small enough for a model that knows nothing: it cannot go on for ever."""

    name: Literal["Ann", "Bob"]
    age: Literal[10, 20, 30]


def text() -> None:
    for model in MODELS:
        answer = Agent(model).run_sync("Say hello.")
        assert answer.output and answer.usage().output_tokens > 0


def conversation() -> None:
    for model in MODELS:
        agent = Agent(model, instructions="Be brief.")
        first = agent.run_sync("Say hello.")
        assert agent.run_sync("And again.", message_history=first.all_messages()).output


def stream() -> None:
    async def streamed() -> None:
        for model in MODELS:
            async with Agent(model).run_stream("Say hello.") as answer:
                assert [piece async for piece in answer.stream_text(delta=True)]

    asyncio.run(streamed())


def typed() -> None:
    for model in MODELS:
        for output in (NativeOutput(Person), ToolOutput(Person)):
            assert isinstance(Agent(model, output_type=output, retries=0).run_sync("Ann is 30.").output, Person)


run(text, conversation, stream, typed)
