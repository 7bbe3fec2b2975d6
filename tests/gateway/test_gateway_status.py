from __future__ import annotations

import json

import httpx
import pytest
from fake_router import FakeRouterClient

from baton.core.errors import Unavailable
from baton.gateway.service import Service
from baton.runtime import logs


async def test_models(http: httpx.AsyncClient) -> None:
    body = (await http.get("/v1/models")).json()
    assert body["object"] == "list" and [entry["id"] for entry in body["data"]] == ["toy", "other-name"]
    entry = (await http.get("/v1/models/other-name")).json()
    assert entry["object"] == "model" and isinstance(entry["created"], int) and entry["owned_by"] == "baton"
    missing = await http.get("/v1/models/organisation/unknown")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


async def test_health_says_what_does_not_work(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    body = (await http.get("/health")).json()
    assert (body["status"], body["redis"], body["workers"]) == ("ok", "connected", {"unified": 1})
    router.redis_connected = False
    body = (await http.get("/health")).json()
    assert body["status"] == "degraded" and "Redis" in body["problems"][0]
    router.down = Unavailable("connection refused")
    response = await http.get("/health")
    assert response.status_code == 200
    body = response.json()
    assert body["redis"] == "unknown" and not body["routers"]["connected"]
    assert "connection refused" in body["problems"][0]


async def test_ready_only_while_the_model_can_be_served(http: httpx.AsyncClient, router: FakeRouterClient) -> None:
    assert (await http.get("/ready")).status_code == 200
    router.ready = False
    response = await http.get("/ready")
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    router.down = Unavailable("connection refused")
    assert "connection refused" in (await http.get("/ready")).json()["error"]["message"]


async def test_the_index_for_programs_and_for_people(http: httpx.AsyncClient) -> None:
    assert (await http.get("/")).json()["service"] == "baton gateway"
    page = await http.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>Baton</title>" in page.text and "unified: 1" in page.text


def sample(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


async def test_metrics(http: httpx.AsyncClient) -> None:
    before = (await http.get("/metrics")).text
    body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert (await http.post("/v1/chat/completions", json={})).status_code == 400
    await http.get("/no/such/path")
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")

    def grown(name: str) -> float:
        return sample(response.text, name) - sample(before, name)

    ok = 'baton_gateway_requests_total{endpoint="/v1/chat/completions",status="200"}'
    assert grown(ok) == 1
    assert grown(ok.replace("200", "400")) == 1
    assert grown('baton_gateway_requests_total{endpoint="other",status="404"}') == 1
    assert grown("baton_gateway_output_tokens_total") == 5
    assert grown("baton_gateway_time_to_first_token_seconds_count") == 1
    assert grown("baton_gateway_inter_token_seconds_count") == 4
    assert grown("baton_gateway_detokenize_seconds_total") > 0
    assert grown("baton_gateway_prompt_tokens_total") > 0
    assert sample(response.text, "baton_gateway_requests_in_flight") == 1  # this one


async def test_the_context_is_the_least_that_anybody_names(service: Service, router: FakeRouterClient) -> None:
    assert service.context_tokens() == 4096
    router._model = type(router._model)("toy", 100, "r", True)
    await service.catalog.refresh()
    assert service.context_tokens() == 100
    router.down = Unavailable("gone")
    with pytest.raises(Unavailable):
        await service.catalog.refresh()
    assert service.context_tokens() == 100


async def test_a_request_is_logged_with_its_id_and_tokens(
    http: httpx.AsyncClient, router: FakeRouterClient, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("gateway", level="info", format="json")
    body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    router.fail_after = (3, Unavailable("the last worker is gone"))
    await http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "mine-7"})
    logs.configure("gateway", level="warning")
    line = next(line for line in map(json.loads, capsys.readouterr().err.splitlines()) if line["event"] == "request")
    assert (line["request_id"], line["status"], line["path"]) == ("mine-7", 503, "/v1/chat/completions")
    assert (line["completion_tokens"], line["error"]) == (3, "the last worker is gone")
    assert line["prompt_tokens"] == len(router.requests[0].prompt_token_ids)


async def test_openapi_describes_the_bodies(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, model in (("/v1/chat/completions", "OpenaiChatRequest"), ("/v1/completions", "OpenaiCompletionRequest")):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body == {"$ref": f"#/components/schemas/{model}"}
        assert "max_tokens" in document["components"]["schemas"][model]["properties"]
