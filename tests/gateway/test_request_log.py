"""What the log says of requests, at each of its levels."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest
from fake_router import NAME, FakeRouterClient

from baton.gateway.app import create_app
from baton.gateway.service import Service
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel
from baton.runtime import logs

SECRET = "the secret of the prompt"
GOOD = {"model": NAME, "prompt": SECRET, "max_tokens": 4, "temperature": 0.5}


async def lines(router: FakeRouterClient, model: TextModel, level: str) -> list[dict[str, Any]]:
    """Log lines of one good request, one bad one, and one that nobody cares for."""
    stream = io.StringIO()
    logs.configure("gateway", level="info", format="json", stream=stream)
    try:
        app = create_app(Service(router, model, NAME, GatewaySettings(log_requests=level)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            assert (await http.post("/v1/completions", json=GOOD)).status_code == 200
            assert (await http.post("/v1/completions", json={**GOOD, "temperature": 9})).status_code == 400
            await http.get("/health")
    finally:
        logs.configure("gateway", level="warning")
    assert SECRET not in stream.getvalue()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line for line in told if line["event"] == "request"]


@pytest.mark.parametrize(("level", "statuses"), [("none", []), ("errors", [400]), ("all", [200, 400])])
async def test_levels(router: FakeRouterClient, model: TextModel, level: str, statuses: list[int]) -> None:
    told = await lines(router, model, level)
    assert [line["status"] for line in told] == statuses
    assert not any("sampling" in line for line in told)


async def test_detail(router: FakeRouterClient, model: TextModel) -> None:
    good, bad = await lines(router, model, "detail")
    assert good["sampling"]["temperature"] == 0.5 and good["sampling"]["max_tokens"] == 4
    (choice,) = good["choices"]
    assert choice["tokens"] == 4 and choice["finish"] == "length" and 0 <= choice["first_token_s"] < 10
    assert "temperature" in bad["error"] and "choices" not in bad
