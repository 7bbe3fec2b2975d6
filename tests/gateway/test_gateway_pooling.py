"""Embeddings, scores, ranking and classification: the openai and ollama packages against a real server, and the wire.

The router is a fake whose vectors can be worked out; tests/e2e/test_pooling_e2e.py has real models behind it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import shutil
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import ollama
import openai
import pytest
from fake_router import NAME, FakeRouterClient, until
from gateway_site import make_service

from baton.client import GenerateRequest, Model, Pooled, Task, Usage
from baton.core.errors import InvalidRequest, Overloaded
from baton.gateway.app import create_app
from baton.gateway.service import Service
from baton.gateway.text_model import TextModel

SIZE = 8


class PoolingRouter(FakeRouterClient):
    """An embedding names the first tokens of its text; a classification head counts tokens; labels are halves."""

    def __init__(self) -> None:
        super().__init__([7], context_tokens=64)
        self.refusal: Exception | None = None

    async def pool(self, request: GenerateRequest) -> Pooled:
        self.requests.append(request)
        self.running += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(0)
            if self.refusal is not None:
                raise self.refusal
            tokens = list(request.prompt_token_ids)
            return Pooled(request.request_id, self._vector(request, tokens), Usage(len(tokens), cached_tokens=1))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def _vector(self, request: GenerateRequest, tokens: list[int]) -> list[float]:
        params = request.pooling
        assert params is not None
        if params.task is Task.EMBED:
            padded = [*tokens, *[0] * SIZE][: params.dimensions or SIZE]
            return [token / 1024 for token in padded]  # exact in float32
        if params.task is Task.CLASSIFY:
            return [float(len(tokens))] if params.raw else [len(tokens) / 128]
        return [math.log(0.5) * (index + 1) for index in range(len(params.label_token_ids))]


@pytest.fixture
def router() -> PoolingRouter:
    return PoolingRouter()


@pytest.fixture
async def service(router: PoolingRouter, model: TextModel) -> Service:
    made = make_service(router, model, aliases=("other-name",))
    await made.catalog.refresh()  # the router says how long inputs may be
    return made


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-any", max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture
def altered(checkpoint: Path, tmp_path: Path) -> Callable[..., TextModel]:
    """The test checkpoint with other files."""

    def make(config: dict[str, object] | None = None, **files: object) -> TextModel:
        folder = shutil.copytree(checkpoint, tmp_path / "altered")
        for name, content in {"config": config or {}, **files}.items():
            path = folder / f"{name}.json"
            old = json.loads(path.read_text()) if path.exists() else None
            new = {**old, **content} if isinstance(old, dict) else content
            path.write_text(json.dumps(new))
        return TextModel.load(folder)

    return make


@asynccontextmanager
async def http_of(router: PoolingRouter, model: TextModel, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    service = make_service(router, model, **settings)
    await service.catalog.refresh()
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def expected(tokens: list[int]) -> list[float]:
    return [token / 1024 for token in [*tokens, *[0] * SIZE][:SIZE]]


async def test_embeddings(client: openai.AsyncOpenAI, model: TextModel, router: PoolingRouter) -> None:
    """The package asks for base64 unless told otherwise."""
    texts = ["A relay race is won", "at the handover.", "x"]
    ids = model.tokenizer.encode(texts, add_special_tokens=True)
    for form in ({}, {"encoding_format": "float"}):
        answer = await client.embeddings.create(model="toy", input=texts, **form)
        assert [one.embedding for one in answer.data] == [expected(tokens) for tokens in ids]
        assert [one.index for one in answer.data] == [0, 1, 2]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
    one = await client.embeddings.create(model="other-name", input=texts[0], dimensions=3, user="somebody")
    assert one.data[0].embedding == expected(ids[0])[:3]
    assert one.model == "other-name" and router.requests[-1].model == "toy"
    given = await client.embeddings.create(model="toy", input=[[5, 6], [7]])
    assert [one.embedding for one in given.data] == [expected([5, 6]), expected([7])]
    single = await client.embeddings.create(model="toy", input=[5, 6])
    assert single.data[0].embedding == expected([5, 6])


async def test_base64(http: httpx.AsyncClient) -> None:
    body = {"model": "toy", "input": [[5, 6], [7]], "encoding_format": "base64"}
    answer = (await http.post("/v1/embeddings", json=body)).json()
    found = [list(struct.unpack(f"<{SIZE}f", base64.b64decode(one["embedding"]))) for one in answer["data"]]
    assert found == [expected([5, 6]), expected([7])]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": ""}, "input", r"'input\[0\]' is empty"),
        ({"input": ["a", ""]}, "input", r"'input\[1\]' is empty"),
        ({"input": []}, "input", "not empty"),
        ({"input": [[]]}, "input", "not empty"),
        ({"input": [1, "a"]}, "input", "a string, a list of strings"),
        ({"input": ["a"] * 2049}, "input", "more than 2048 inputs"),
        ({"input": [800]}, "input", r"names token 800; ids are from 0 to 799"),
        ({"input": [[7] * 65]}, "input", r"'input\[0\]' has 65 tokens, but this model takes at most 64"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "truncate_prompt_tokens": 65}, "truncate_prompt_tokens", "at most 64"),
    ],
)
async def test_bad_input(http: httpx.AsyncClient, fields: dict[str, object], param: str, message: str) -> None:
    answer = await http.post("/v1/embeddings", json={"model": "toy", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert re.search(message, error["message"])


async def test_what_the_router_refuses(client: openai.AsyncOpenAI, router: PoolingRouter) -> None:
    router.refusal = InvalidRequest("model 'toy' does not do task embed; it does: classify", param="model")
    with pytest.raises(openai.BadRequestError, match="does not do task embed"):
        await client.embeddings.create(model="toy", input=["a", "b"])
    router.refusal = Overloaded("full", retry_after_s=3)
    with pytest.raises(openai.RateLimitError) as full:
        await client.embeddings.create(model="toy", input="a")
    assert full.value.response.headers["retry-after"] == "3"
    assert router.running == 0


async def test_many_inputs_are_bounded_and_cancelled_with_the_client(url: str, router: PoolingRouter) -> None:
    router.gate = asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        body = {"model": "toy", "input": [f"text {n}" for n in range(100)]}
        posting = asyncio.create_task(http.post("/v1/embeddings", json=body))
        await until(lambda: router.running == 64)
        posting.cancel()
        await until(lambda: router.running == 0)
        assert (len(router.requests), router.cancelled) == (64, 64)
        router.gate.set()
        answer = await http.post("/v1/embeddings", json=body)
    assert len(answer.json()["data"]) == 100


async def test_truncation_is_that_of_transformers(
    router: PoolingRouter, altered: Callable[..., TextModel], tmp_path: Path
) -> None:
    """Special tokens stay; of a pair the longer text is cut first."""
    from transformers import AutoTokenizer

    post_processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "<|end|>", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                 {"SpecialToken": {"id": "<|end|>", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}
                           for name, id in (("<|begin|>", 0), ("<|end|>", 1))},
    }  # fmt: skip
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "relevant"}}
    model = altered(labels, tokenizer={"post_processor": post_processor})
    theirs = AutoTokenizer.from_pretrained(tmp_path / "altered")
    short, long = "the second machine", "keys and values, layer after layer, page after page " * 4
    async with http_of(router, model) as http:
        for truncate, most in ((-1, 64), (12, 12)):
            fields = {"model": "toy", "input": [short, long], "truncate_prompt_tokens": truncate}
            await http.post("/v1/classify", json=fields)
            for request, text in zip(router.requests[-2:], (short, long), strict=True):
                assert list(request.prompt_token_ids) == theirs(text, truncation=True, max_length=most)["input_ids"]
            fields = {"model": "toy", "query": long, "documents": [short, long], "truncate_prompt_tokens": truncate}
            await http.post("/v1/rerank", json=fields)
            for request, text in zip(router.requests[-2:], (short, long), strict=True):
                pair = theirs(long, text, truncation=True, max_length=most, return_token_type_ids=True)
                assert list(request.prompt_token_ids) == pair["input_ids"]
                assert request.pooling.second_text_at == pair["token_type_ids"].index(1)


async def test_an_end_token_that_the_tokenizer_does_not_bring(
    router: PoolingRouter, altered: Callable[..., TextModel]
) -> None:
    model = altered(tokenizer_config={"add_eos_token": True})
    async with http_of(router, model) as http:
        await http.post("/v1/embeddings", json={"model": "toy", "input": "a"})
        [ids] = model.tokenizer.encode(["a"], add_special_tokens=True)
        assert list(router.requests[-1].prompt_token_ids) == [*ids, 1]
        labels = {"model": "toy", "query": "", "items": ["a"], "label_token_ids": [5]}
        await http.post("/v1/score", json=labels)  # what comes next does not come behind the end
        assert list(router.requests[-1].prompt_token_ids) == ids
        long = {"model": "toy", "input": "ab " * 100, "truncate_prompt_tokens": -1}
        await http.post("/v1/embeddings", json=long)
        assert len(router.requests[-1].prompt_token_ids) == 64 and router.requests[-1].prompt_token_ids[-1] == 1


async def test_rerank_by_a_cross_encoder(router: PoolingRouter, altered: Callable[..., TextModel]) -> None:
    """The fake's head finds longer pairs more relevant."""
    model = altered({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}})
    documents = ["bb", {"text": "cc dd ee ff"}, "gg hh"]
    async with http_of(router, model) as http:
        for path in ("/v1/rerank", "/v2/rerank"):
            answer = (await http.post(path, json={"model": "toy", "query": "a", "documents": documents})).json()
            assert [result["index"] for result in answer["results"]] == [1, 2, 0]
            assert answer["results"][0]["document"] == {"text": "cc dd ee ff"}
            scores = [result["relevance_score"] for result in answer["results"]]
            assert scores == sorted(scores, reverse=True) and 0 < scores[-1] < scores[0] < 1
            assert answer["usage"]["total_tokens"] == round(sum(scores) * 128)
        short = {"model": "toy", "query": "a", "documents": documents, "top_n": 1, "return_documents": False}
        answer = (await http.post("/v1/rerank", json=short)).json()
        assert [set(result) for result in answer["results"]] == [{"index", "relevance_score"}]
        refused = await http.post("/v1/rerank", json={**short, "instruction": "find"})
        assert refused.status_code == 400 and "takes no instruction" in refused.json()["error"]["message"]
        empty = await http.post("/v1/rerank", json={**short, "documents": ["a", ""]})
        assert (empty.status_code, empty.json()["error"]["param"]) == (400, "documents")


async def test_scores_by_cosine(router: PoolingRouter, altered: Callable[..., TextModel]) -> None:
    model = altered({"architectures": ["LlamaModel"]})
    texts = ["the sea", "the wind", "the sea"]
    ids = model.tokenizer.encode(texts, add_special_tokens=True)
    dot = sum(a * b for a, b in zip(expected(ids[0]), expected(ids[1]), strict=True))
    norms = math.hypot(*expected(ids[0])) * math.hypot(*expected(ids[1]))
    async with http_of(router, model) as http:
        fields = {"model": "toy", "text_1": texts[0], "text_2": texts[1:]}
        answer = (await http.post("/v1/score", json=fields)).json()
        assert [one["score"] for one in answer["data"]] == pytest.approx([dot / norms, 1.0])
        assert len(router.requests) == 2  # each text once
        paired = {"model": "toy", "text_1": texts[:2], "text_2": texts[1:]}
        assert len((await http.post("/v1/score", json=paired)).json()["data"]) == 2
        uneven = {"model": "toy", "text_1": texts[:2], "text_2": texts}
        refused = await http.post("/v1/score", json=uneven)
        assert refused.status_code == 400 and "'text_1' has 2 texts" in refused.json()["error"]["message"]


async def test_rerank_by_yes_or_no(router: PoolingRouter, checkpoint: Path, altered: Callable[..., TextModel]) -> None:
    """The prompt is that of Qwen3-Reranker's model card. The fake finds yes twice as likely as no."""
    body = json.loads((checkpoint / "tokenizer.json").read_text())
    added = [*body["added_tokens"]]
    for id, word in ((800, "yes"), (801, "no"), (802, "<|im_start|>"), (803, "<|im_end|>")):
        added.append({**added[0], "id": id, "content": word, "special": word.startswith("<")})
    model = altered(tokenizer={"added_tokens": added})
    before = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    router._model = Model(NAME, 4096, "revision-1", True)
    async with http_of(router, model, reranker="qwen3") as http:
        fields = {"model": "toy", "query": "why", "documents": ["because", "no"], "instruction": "Find reasons"}
        answer = (await http.post("/v1/rerank", json=fields)).json()
        assert [result["relevance_score"] for result in answer["results"]] == [pytest.approx(2 / 3)] * 2
        request = router.requests[0]
        assert request.pooling.label_token_ids == (800, 801)
        text = f"{before}<Instruct>: Find reasons\n<Query>: why\n<Document>: because{after}"
        shown = "".join(model.tokenizer._inner.decode(list(request.prompt_token_ids), skip_special_tokens=False))
        assert shown == text
        shared = model.tokenizer.encode([before], add_special_tokens=False)[0]
        assert all(list(one.prompt_token_ids[: len(shared)]) == shared for one in router.requests)
    async with http_of(router, TextModel.load(checkpoint), reranker="qwen3") as http:
        refused = await http.post("/v1/rerank", json={"model": "toy", "query": "a", "documents": ["b"]})
        assert refused.status_code == 400 and '"yes" and "no"' in refused.json()["error"]["message"]


async def test_label_scores(http: httpx.AsyncClient, router: PoolingRouter, model: TextModel) -> None:
    fields = {"model": "toy", "query": "Is it? ", "items": ["yes", "no"], "label_token_ids": [9, 10]}
    answer = (await http.post("/v1/score", json=fields)).json()
    assert answer["scores"] == [pytest.approx([0.5, 0.25])] * 2 and answer["object"] == "scoring"
    assert (
        list(router.requests[0].prompt_token_ids) == model.tokenizer.encode(["Is it? yes"], add_special_tokens=True)[0]
    )
    answer = (await http.post("/v1/score", json={**fields, "apply_softmax": True, "item_first": True})).json()
    assert answer["scores"] == [pytest.approx([2 / 3, 1 / 3])] * 2
    ids = {"query": [5, 6], "items": [[7], [8]], "item_first": True}
    await http.post("/v1/score", json={**fields, **ids})
    assert [list(request.prompt_token_ids) for request in router.requests[-2:]] == [[7, 5, 6], [8, 5, 6]]
    mixed = await http.post("/v1/score", json={**fields, "items": [[7]]})
    assert (mixed.status_code, mixed.json()["error"]["param"]) == (400, "items")


async def test_a_model_that_does_not_rank(http: httpx.AsyncClient) -> None:
    for path, fields in (
        ("/v1/rerank", {"query": "a", "documents": ["b"]}), ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/classify", {"input": "a"}),
    ):  # fmt: skip
        answer = await http.post(path, json={"model": "toy", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


async def test_classify_and_rewards(router: PoolingRouter, altered: Callable[..., TextModel]) -> None:
    model = altered({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "good"}})
    async with http_of(router, model) as http:
        answer = (await http.post("/v1/classify", json={"model": "toy", "input": [[7], [7, 8, 9]]})).json()
        assert answer["data"][1] == {"index": 1, "label": "good", "probs": [3 / 128], "num_classes": 1}
        raw = {"model": "toy", "input": [7, 8, 9], "use_activation": False}
        assert (await http.post("/v1/classify", json=raw)).json()["data"][0]["probs"] == [3.0]
        talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        answer = (await http.post("/pooling", json={"model": "toy", "messages": talk})).json()
        text = model.template.render(talk, {"add_generation_prompt": False})
        assert not text.endswith("<|assistant|>")
        [ids] = model.tokenizer.encode([text], add_special_tokens=False)
        assert list(router.requests[-1].prompt_token_ids) == ids
        assert answer["data"] == [{"index": 0, "object": "pooling", "data": [float(len(ids))]}]
        both = await http.post("/pooling", json={"model": "toy", "messages": talk, "input": "a"})
        assert both.status_code == 400


async def test_pooling_of_an_embedding_model(http: httpx.AsyncClient, router: PoolingRouter) -> None:
    answer = (await http.post("/pooling", json={"model": "toy", "input": [5, 6], "normalize": False})).json()
    assert answer["data"][0]["data"] == expected([5, 6])
    assert router.requests[-1].pooling.raw


async def test_ollama(url: str, model: TextModel, router: PoolingRouter) -> None:
    client = ollama.AsyncClient(host=url, timeout=30)
    ids = model.tokenizer.encode(["the sea", "the wind"], add_special_tokens=True)
    answer = await client.embed(model="toy:latest", input=["the sea", "the wind"])
    assert [list(vector) for vector in answer.embeddings] == [expected(tokens) for tokens in ids]
    assert answer.prompt_eval_count == sum(map(len, ids))
    cut = await client.embed(model="toy", input="page after page " * 50, dimensions=2)
    assert len(cut.embeddings[0]) == 2 and len(router.requests[-1].prompt_token_ids) == 64
    with pytest.raises(ollama.ResponseError, match="takes at most 64"):
        await client.embed(model="toy", input="page after page " * 50, truncate=False)
    assert list((await client.embeddings(model="toy", prompt="the sea")).embedding) == expected(ids[0])
    assert (await client.embed(model="toy", input="")).embeddings == []


@pytest.mark.parametrize(("architecture", "first"), [("BertModel", "embedding"), ("GPT2LMHeadModel", "completion")])
async def test_what_ollama_shows_of_models(
    router: PoolingRouter, altered: Callable[..., TextModel], architecture: str, first: str
) -> None:
    async with http_of(router, altered({"architectures": [architecture]})) as http:
        assert (await http.post("/api/show", json={"model": "toy"})).json()["capabilities"][0] == first
