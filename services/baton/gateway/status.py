"""What operators and load balancers ask: `/`, `/health`, `/ready`, `/metrics`."""

from __future__ import annotations

import html
from collections import Counter
from importlib.metadata import version
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from baton.client import Fleet
from baton.core.errors import BatonError, Unavailable
from baton.gateway.openai.errors import error_response
from baton.gateway.service import Service
from baton.runtime import metrics

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Baton</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}}
th{{text-align:left;padding-right:2rem}}pre{{overflow-x:auto}}</style></head>
<body><h1>Baton</h1><table>{rows}</table>
<p>OpenAI's and Anthropic's APIs at <code>/v1</code>, Ollama's at <code>/api</code>.
See also <a href="ui">chat and cluster</a>, <a href="health">health</a>,
<a href="v1/models">models</a>, <a href="metrics">metrics</a>.</p></body></html>
"""


class StatusPages:
    """Answers from what the routers say at the time of asking; none of them waits long."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def index(self, request: Request) -> Response:
        """What runs here: JSON for programs, a page for browsers."""
        state = await self._state()
        if "text/html" not in request.headers.get("accept", ""):
            return _json(state)
        cells = [(html.escape(name), html.escape(_plain(value))) for name, value in state.items()]
        rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
        return Response(_PAGE.format(rows=rows), media_type="text/html")

    async def health(self, request: Request) -> Response:
        """200 while this process works; `problems` names what around it does not."""
        return _json(await self._state())

    async def ready(self, request: Request) -> Response:
        """200 when the model can be served now, else 503 with the reason."""
        if self._service.drain.is_set:
            return error_response(Unavailable("draining: the operator wants no new requests here", retry_after_s=1.0))
        name = self._service.catalog.name
        try:
            model = await self._service.catalog.refresh()
        except BatonError as error:
            return error_response(Unavailable(f"no router answers: {error.message}", retry_after_s=1.0))
        if model is None:
            return error_response(Unavailable(f"no worker serves the model '{name}' yet", retry_after_s=1.0))
        if not model.ready:
            return error_response(Unavailable(f"no placement for the model '{name}' now", retry_after_s=1.0))
        return _json({"ready": True, "model": name})

    async def metrics(self, request: Request) -> Response:
        return Response(metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})

    async def _state(self) -> dict[str, Any]:
        fleet: Fleet | None = None
        try:
            fleet = await self._service.catalog.fleet()
            problems = _problems(fleet, self._service.catalog.name)
        except BatonError as error:
            problems = [f"no router answers: {error.message}"]
        return {
            "status": "degraded" if problems else "ok",
            "problems": problems,
            "service": "baton gateway",
            "version": version("baton-serving"),
            "models": list(self._service.names),
            "routers": {"addresses": list(self._service.settings.routers), "connected": fleet is not None},
            "redis": "unknown" if fleet is None else "connected" if fleet.redis_connected else "disconnected",
            "workers": {} if fleet is None else Counter(worker.role for worker in fleet.workers if worker.connected),
        }


def _problems(fleet: Fleet, model: str) -> list[str]:
    problems = []
    if not fleet.redis_connected:
        problems.append("Redis is not connected: prefixes are not found on other workers, new workers not seen")
    if not any(worker.connected and worker.model == model for worker in fleet.workers):
        problems.append(f"no worker serves the model '{model}'")
    problems += [f"worker {worker.worker_id} is not connected" for worker in fleet.workers if not worker.connected]
    return problems


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
