"""`GET /v1/models` and `GET /v1/models/{model}`."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from baton.gateway.service import Service


class ModelsEndpoint:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def list(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._entry(name) for name in self._service.names]})

    async def retrieve(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._service.check_model(name)
        return _json(self._entry(name))

    def _entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._service.started_at, "owned_by": "baton"}


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
