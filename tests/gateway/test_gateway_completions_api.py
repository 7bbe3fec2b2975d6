from __future__ import annotations

import json

import httpx
import pytest
from fake_router import FakeRouterClient

from baton.gateway.text_model import TextModel


async def complete(http: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await http.post("/v1/completions", json={"model": "toy", "prompt": "Once upon", "temperature": 0, **fields})


def chunks(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_the_whole_answer(http: httpx.AsyncClient, router: FakeRouterClient, model: TextModel) -> None:
    body = (await complete(http)).json()
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    [choice] = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert body["usage"]["completion_tokens"] == 16
    prompt = router.requests[0].prompt_token_ids
    assert prompt[0] == model.tokenizer.encode(["<|begin|>"], add_special_tokens=False)[0][0]
    assert model.tokenizer.decode(prompt) == "Once upon"


async def test_streamed_text_equals_the_whole(http: httpx.AsyncClient) -> None:
    whole = (await complete(http)).json()
    got = chunks(await complete(http, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice["text"] for chunk in got for choice in chunk["choices"]) == whole["choices"][0]["text"]
    assert got[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert {chunk["object"] for chunk in got} == {"text_completion"}


async def test_many_prompts_each_with_choices(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    body = (await complete(http, prompt=["a b", "c d e"], n=2, temperature=1.0, max_tokens=3)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    prompts = [tuple(request.prompt_token_ids) for request in sorted(router.requests, key=lambda r: r.request_id)]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert body["usage"]["prompt_tokens"] == len(prompts[0]) + len(prompts[2])
    assert body["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("prompt", [[10, 11, 12], [[10, 11, 12], [13]]])
async def test_token_id_prompts(http: httpx.AsyncClient, router: FakeRouterClient, prompt: list) -> None:
    assert (await complete(http, prompt=prompt)).status_code == 200
    assert list(router.requests[0].prompt_token_ids) == [10, 11, 12]


async def test_echo(http: httpx.AsyncClient) -> None:
    plain = (await complete(http)).json()["choices"][0]["text"]
    assert (await complete(http, echo=True)).json()["choices"][0]["text"] == "Once upon" + plain
    got = chunks(await complete(http, echo=True, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in got) == "Once upon" + plain


async def test_echo_of_token_ids(http: httpx.AsyncClient, model: TextModel) -> None:
    ids = model.tokenizer.encode(["Once upon"], add_special_tokens=False)[0]
    assert (await complete(http, prompt=ids, echo=True)).json()["choices"][0]["text"].startswith("Once upon")


def check_arrays(logprobs: dict[str, list], text: str) -> None:
    assert len({len(array) for array in logprobs.values()}) == 1
    offsets = logprobs["text_offset"]
    for offset, token in zip(offsets, logprobs["tokens"], strict=True):
        if not token.startswith(("<|", "bytes:")):
            assert text[offset : offset + len(token)] == token


@pytest.mark.parametrize("top", [0, 2])
async def test_logprobs(http: httpx.AsyncClient, top: int) -> None:
    choice = (await complete(http, logprobs=top)).json()["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == 16
    check_arrays(choice["logprobs"], choice["text"])
    assert all(len(entry) == max(top, 1) for entry in choice["logprobs"]["top_logprobs"])


async def test_logprobs_of_an_echoed_prompt(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    choice = (await complete(http, echo=True, logprobs=1, max_tokens=2)).json()["choices"][0]
    check_arrays(choice["logprobs"], choice["text"])
    prompt = router.requests[0].prompt_token_ids
    assert len(choice["logprobs"]["tokens"]) == len(prompt) + 2
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert None not in choice["logprobs"]["token_logprobs"][1:]
    streamed: dict[str, list] = {}
    for chunk in chunks(await complete(http, echo=True, logprobs=1, max_tokens=2, stream=True)):
        for name, array in (chunk["choices"][0]["logprobs"] or {}).items():
            streamed.setdefault(name, []).extend(array)
    assert streamed == choice["logprobs"]


async def test_tokens_that_are_no_characters_have_names_of_their_own(
    http: httpx.AsyncClient, router: FakeRouterClient, model: TextModel
) -> None:
    router.script = model.tokenizer.encode(["東"], add_special_tokens=False)[0]
    choice = (await complete(http, logprobs=0)).json()["choices"][0]
    if len(router.script) == 3:
        assert choice["logprobs"]["tokens"] == ["bytes:\\xe6", "bytes:\\x9d", "bytes:\\xb1"]
    assert choice["logprobs"]["text_offset"] == [0] * len(router.script)


async def test_stop(http: httpx.AsyncClient, router: FakeRouterClient, model: TextModel) -> None:
    router.script = model.tokenizer.encode(["one two three"], add_special_tokens=False)[0]
    choice = (await complete(http, stop=["two"])).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one ", "stop")


async def test_ending_tokens_are_counted_not_shown(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    """Also one that is no special token, so that its text must be left out on purpose."""
    first, ending = router.alphabet[:2]
    router.script = [first, ending]
    body = (await complete(http, stop_token_ids=[ending], logprobs=0)).json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert len(body["choices"][0]["logprobs"]["tokens"]) == 1 == len(body["choices"][0]["text"])
    assert body["usage"]["completion_tokens"] == 2
