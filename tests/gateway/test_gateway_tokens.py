from __future__ import annotations

import httpx
import pytest
from fake_router import FakeRouterClient

from baton.gateway.text_model import TextModel

HELLO = [{"role": "user", "content": "Hello there."}]


async def test_a_text_there_and_back(http: httpx.AsyncClient, model: TextModel) -> None:
    text = "Grüße aus 東京"
    body = (await http.post("/tokenize", json={"model": "toy", "prompt": text, "return_token_strs": True})).json()
    [expected] = model.tokenizer.encode([text], add_special_tokens=True)
    assert body["tokens"] == expected and body["count"] == len(expected) == len(body["token_strs"])
    assert body["max_model_len"] == 4096
    plain = (await http.post("/tokenize", json={"prompt": text, "add_special_tokens": False})).json()["tokens"]
    assert plain == model.tokenizer.encode([text], add_special_tokens=False)[0]
    back = (await http.post("/detokenize", json={"tokens": body["tokens"]})).json()
    assert back["prompt"] == back["text"] == text


async def test_a_chat_is_what_chat_completions_read(tool_http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    tools = [{"type": "function", "function": {"name": "get_time"}}]
    chat = {"model": "toy", "messages": HELLO, "tools": tools}
    tokens = (await tool_http.post("/tokenize", json=chat)).json()["tokens"]
    await tool_http.post("/v1/chat/completions", json={**chat, "max_tokens": 1})
    assert router.requests[0].prompt_token_ids == tokens


BAD = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "x", "messages": HELLO}, "prompt"),
    ("/tokenize", {"prompt": 5}, "prompt"),
    ("/tokenize", {"messages": HELLO, "add_generation_prompt": False}, "add_generation_prompt"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": [800]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": "x"}, "tokens"),
]


@pytest.mark.parametrize("path, fields, param", BAD, ids=str)
async def test_bad_fields_are_named(http: httpx.AsyncClient, path: str, fields: dict, param: str) -> None:
    response = await http.post(path, json=fields)
    assert response.status_code == 400 and response.json()["error"]["param"].split("[")[0] == param


async def test_an_unknown_model(http: httpx.AsyncClient) -> None:
    assert (await http.post("/tokenize", json={"model": "other", "prompt": "x"})).status_code == 404
    assert (await http.post("/detokenize", json={"model": "other", "tokens": []})).status_code == 404
