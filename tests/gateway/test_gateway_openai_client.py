"""The openai package against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from fake_router import FakeRouterClient, until

from baton.core.errors import Overloaded, Unavailable

HELLO = [{"role": "user", "content": "Hello there."}]


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    options = {"max_retries": 0, "timeout": 30, "_strict_response_validation": True}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-any", **options) as made:
        yield made


async def test_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="toy", messages=HELLO, max_completion_tokens=8, temperature=0)
    text = ""
    stream = await client.chat.completions.create(
        model="toy", messages=HELLO, max_completion_tokens=8, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    async for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == answer.choices[0].message.content != ""
    assert chunk.usage == answer.usage.model_copy(update={"prompt_tokens_details": chunk.usage.prompt_tokens_details})
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_the_stream_helper(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    router.script = router.alphabet[:6]
    async with client.chat.completions.stream(model="toy", messages=HELLO) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("content.done") == 1 and "content.delta" in kinds
    assert final.choices[0].finish_reason == "stop"


async def test_logprobs_and_choices(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="toy", messages=HELLO, max_tokens=4, n=2, seed=3, logprobs=True, top_logprobs=2
    )
    for choice in answer.choices:
        entries = choice.logprobs.content
        assert bytes(byte for entry in entries for byte in entry.bytes).decode() == choice.message.content
    assert answer.choices[0].message.content != answer.choices[1].message.content


async def test_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="toy", prompt=["a", "b"], max_tokens=4, logprobs=1)
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [4, 4]
    answer = await client.completions.create(model="toy", prompt=["a", "b"], max_tokens=4, echo=True)
    assert [choice.text[0] for choice in answer.choices] == ["a", "b"]
    # Its types forbid the finish_reason null that streams have: no strict validation.
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key="sk-any") as lax:
        stream = await lax.completions.create(model="toy", prompt="a", max_tokens=4, stream=True)
        assert [choice.finish_reason async for chunk in stream for choice in chunk.choices][-1] == "length"


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["toy", "other-name"]
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("unknown")


async def test_errors(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="unknown", messages=HELLO, stream=True)
    assert missing.value.code == "model_not_found" and missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="toy", messages=HELLO, temperature=9)
    assert bad.value.param == "temperature"
    router.fail_after = (0, Overloaded("queue is full", retry_after_s=7))
    with pytest.raises(openai.RateLimitError) as full:
        await client.chat.completions.create(model="toy", messages=HELLO)
    assert full.value.response.headers["retry-after"] == "7"
    router.fail_after = (0, Unavailable("nobody"))
    with pytest.raises(openai.InternalServerError) as nobody:
        await client.chat.completions.create(model="toy", messages=HELLO)
    assert nobody.value.status_code == 503


async def test_an_error_in_mid_stream(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    router.fail_after = (2, Unavailable("the last worker is gone"))
    stream = await client.chat.completions.create(model="toy", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="the last worker is gone"):
        async for _ in stream:
            pass


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels(client: openai.AsyncOpenAI, router: FakeRouterClient, stream: bool) -> None:
    """The gate keeps the answer unfinished until the client has gone."""
    router.gate = asyncio.Event()
    asking = asyncio.create_task(
        client.chat.completions.create(model="toy", messages=HELLO, n=2, max_tokens=2000, stream=stream)
    )
    await until(lambda: router.running == 2)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: router.running == 0)
    assert router.cancelled == 2


async def test_closing_a_stream_cancels(client: openai.AsyncOpenAI, router: FakeRouterClient) -> None:
    router.gate = asyncio.Event()
    router.gate.set()
    stream = await client.chat.completions.create(model="toy", messages=HELLO, max_tokens=3000, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            router.gate.clear()
            break
    await stream.close()
    await until(lambda: router.running == 0)
    assert router.cancelled == 1


async def test_many_at_once(client: openai.AsyncOpenAI) -> None:
    async def ask(number: int) -> tuple[str, str]:
        messages = [{"role": "user", "content": f"Number {number % 4}."}]
        answer = await client.chat.completions.create(model="toy", messages=messages, max_tokens=8, temperature=0)
        return answer.id, answer.choices[0].message.content

    alone = [(await ask(number))[1] for number in range(4)]
    answers = await asyncio.gather(*map(ask, range(32)))
    assert len({id for id, _ in answers}) == 32
    assert [text for _, text in answers] == [alone[number % 4] for number in range(32)]
