"""Completions: the best of several, filling in, scoring a prompt; which field a refused structure came by."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx
import openai
import pytest
import tokenizers
from fake_router import FakeRouterClient
from gateway_site import make_service

from baton.client import TokenLogprobs
from baton.core.errors import InvalidRequest
from baton.gateway.app import create_app
from baton.gateway.text_model import TextModel


async def complete(http: httpx.AsyncClient, **fields: object) -> httpx.Response:
    return await http.post("/v1/completions", json={"model": "toy", "prompt": "Once upon", "max_tokens": 5, **fields})


@pytest.fixture
def uneven(router: FakeRouterClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logprobs that differ from token to token."""

    def logprobs(token: int, top: int) -> TokenLogprobs:
        return TokenLogprobs(token, -(token % 7) / 3 - 0.1, ((token, -0.1),) * min(top, 1))

    monkeypatch.setattr(router, "logprobs", logprobs)


@pytest.mark.usefixtures("uneven")
async def test_best_of(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    fields = {"prompt": ["a b", "c d"], "seed": 4}
    drawn = (await complete(http, n=6, logprobs=0, **fields)).json()["choices"]
    body = (await complete(http, n=2, best_of=6, **fields)).json()
    expected = []
    for own in (drawn[:6], drawn[6:]):
        means = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["tokens"]) for c in own}
        assert len(means) == 6
        expected += sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [choice["text"] for choice in body["choices"]] == expected
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in body["choices"])
    assert body["usage"]["completion_tokens"] == 2 * 6 * 5
    with_logprobs = (await complete(http, n=1, best_of=6, logprobs=1, **fields)).json()["choices"]
    assert [choice["text"] for choice in with_logprobs] == expected[::2] and with_logprobs[0]["logprobs"]["tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 65, "prompt": ["a", "b"]}, "prompt"),
        ({"max_tokens": 0, "stream": True}, "max_tokens"),
        ({"suffix": "end"}, "suffix"),
    ],
)
async def test_what_does_not_fit_together(http: httpx.AsyncClient, fields: dict, param: str) -> None:
    refused = await complete(http, **fields)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param


async def test_scoring_a_prompt(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    """max_tokens 0 with echo and logprobs: the prompt and its logprobs, nothing else."""
    more = (await complete(http, echo=True, logprobs=1, max_tokens=1)).json()
    body = (await complete(http, echo=True, logprobs=1, max_tokens=0)).json()
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"], body["usage"]["completion_tokens"]) == ("Once upon", "length", 0)
    prompt = len(router.requests[0].prompt_token_ids)
    for name, values in choice["logprobs"].items():
        assert values == more["choices"][0]["logprobs"][name][:prompt]
    assert (await complete(http, max_tokens=0)).json()["choices"][0]["text"] == ""


MARKERS = {
    "qwen": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    "starcoder": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    "deepseek": ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    "llama": ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"],
    "codestral": ["[SUFFIX]", "[PREFIX]"],
}


def with_markers(checkpoint: Path, folder: Path, markers: Sequence[str]) -> TextModel:
    shutil.copytree(checkpoint, folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in markers])
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextModel.load(folder)


@pytest.mark.parametrize("family", MARKERS)
async def test_filling_in(checkpoint: Path, tmp_path: Path, router: FakeRouterClient, family: str) -> None:
    """The prompt is that of the model's makers, as text, with BOS as before any other."""
    names = MARKERS[family]
    model = with_markers(checkpoint, tmp_path / "model", names)
    transport = httpx.ASGITransport(create_app(make_service(router, model)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        body = (await complete(http, prompt="def f(", suffix="return x", echo=True)).json()
        plain = (await complete(http, prompt="def f(", suffix="")).status_code
        asked = {"model": "toy", "prompt": "def f(", "suffix": "return x", "stream": False}
        ollama = await http.post("/api/generate", json=asked)
    parts = ["return x", "def f("] if family == "codestral" else ["def f(", "return x"]
    written = names[0] + parts[0] + names[1] + parts[1] + "".join(names[2:3])
    assert plain == 200 and body["choices"][0]["text"].startswith("def f(")
    told = list(router.requests[0].prompt_token_ids)
    assert told == model.tokenizer.encode([written], add_special_tokens=True)[0]
    ends = {model.tokenizer.token_name(id) for id in router.requests[0].sampling.stop_token_ids}
    assert ends == ({"▁<EOT>"} if family == "llama" else set())
    assert router.requests[1].sampling.stop_token_ids == ()
    assert ollama.json()["response"] and list(router.requests[2].prompt_token_ids) == told
    assert router.requests[2].sampling.stop_token_ids == router.requests[0].sampling.stop_token_ids


async def test_reasoning_tokens_are_in_the_usage(tool_http: httpx.AsyncClient, say, tool_model: TextModel) -> None:
    thought = tool_model.tokenizer.encode(["<think>I need the weather."], add_special_tokens=False)[0]
    say("<think>I need the weather.</think>It is warm.")
    body = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
    usage = (await tool_http.post("/v1/chat/completions", json=body)).json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len(thought)}


FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "response_format": FORMAT}, "response_format"),
        ("/v1/chat/completions", {"messages": MESSAGES, "guided_regex": "a+"}, "guided_regex"),
        ("/v1/chat/completions", {"messages": MESSAGES, "structured_outputs": {"choice": ["a"]}},
         "structured_outputs.choice"),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"}, "tools"),
        ("/v1/completions", {"prompt": "Hi", "ebnf": 'root ::= "a"'}, "ebnf"),
        ("/v1/responses", {"input": "Hi", "text": {"format": {**FORMAT["json_schema"], "type": "json_schema"}}},
         "text.format"),
    ],
)  # fmt: skip
async def test_a_refused_structure_names_its_field(
    tool_http: httpx.AsyncClient, router: FakeRouterClient, path: str, fields: dict, param: str
) -> None:
    """Workers know nothing of the fields by which clients ask."""
    router.fail_after = (0, InvalidRequest("the structure cannot be enforced", param="structure"))
    refused = await tool_http.post(path, json={"model": "toy", **fields})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param, refused.text


async def test_the_client_accepts_it_all(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", _strict_response_validation=True) as client:
        answer = await client.completions.create(model="toy", prompt="Hi", best_of=3, n=2, max_tokens=2, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
