"""What Ollama's API tells of models: `/api/tags`, `/api/show`, `/api/ps`, `/api/version`; and what is not there."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import orjson
from pydantic import model_validator
from starlette.requests import Request
from starlette.responses import Response

from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.fields import Body, parse
from baton.gateway.ollama.errors import NotSupported
from baton.gateway.parsers.registry import NONE
from baton.gateway.pooling.text_side import Ranker
from baton.gateway.service import Service

_FOR_EVER = "9999-12-31T23:59:59Z"
_LATEST = ":latest"


def served_name(service: Service, asked: str) -> str:
    """The name of a model that is served, without the tag that Ollama's clients add. Raises ModelNotFound."""
    name = asked if asked in service.names else asked.removesuffix(_LATEST)
    service.check_model(name)
    return name


class ShowRequest(Body):
    """`name` is what older clients call `model`."""

    model: str

    @model_validator(mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "model" not in value and "name" in value:
            return {**value, "model": value["name"]}
        return value


class ModelPages:
    """Answers about the models of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def tags(self, request: Request) -> Response:
        return _json({"models": [self._entry(name) for name in self._service.names]})

    async def running(self, request: Request) -> Response:
        """`/api/ps`: the models that can be served now. Raises Unavailable when no router answers."""
        model = await self._service.catalog.refresh()
        if model is None or not model.ready:
            return _json({"models": []})
        running = {"expires_at": _FOR_EVER, "context_length": self._service.context_tokens()}
        size = self._service.model.checkpoint.weight_bytes
        return _json({"models": [{**self._entry(name), **running, "size_vram": size} for name in self._service.names]})

    async def show(self, request: Request) -> Response:
        body = json_object(await read_body(request, self._service.settings.max_body_bytes))
        name = served_name(self._service, parse(ShowRequest, body).model)
        model, family = self._service.model, self._service.model.checkpoint.family
        entry = self._entry(name)
        return _json(
            {
                "modelfile": f"FROM {name}\n",
                "parameters": "\n".join(f"{name} {value}" for name, value in model.sampling_defaults.items()),
                "template": model.template.source if model.template is not None else "",
                "details": entry["details"],
                "model_info": {
                    "general.architecture": family,
                    f"{family}.context_length": self._service.context_tokens(),
                    f"{family}.vocab_size": model.vocab_size,
                },
                "capabilities": self._capabilities(),
                "modified_at": entry["modified_at"],
            }
        )

    async def version(self, request: Request) -> Response:
        return _json({"version": version("baton-serving")})

    async def not_managed(self, request: Request) -> Response:
        raise NotSupported("Models are not managed here: a server serves those that it was started with.")

    def _entry(self, name: str) -> dict[str, Any]:
        catalog, checkpoint = self._service.catalog, self._service.model.checkpoint
        revision = catalog.model.revision if catalog.model is not None else ""
        return {
            "name": name,
            "model": name,
            "modified_at": datetime.fromtimestamp(checkpoint.modified_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "size": checkpoint.weight_bytes,
            "digest": hashlib.sha256(f"{catalog.name}\0{revision}".encode()).hexdigest(),
            "details": {
                "parent_model": "",
                "format": "safetensors",
                "family": checkpoint.family,
                "families": [checkpoint.family],
                "parameter_size": "",
                "quantization_level": checkpoint.dtype,
            },
        }

    def _capabilities(self) -> list[str]:
        model = self._service.model
        template, parsers = model.template, self._service.parsers
        if not model.pooling.draws_tokens:
            return [] if model.pooling.labels else ["embedding"]
        found = ["completion"]
        if parsers.tools != NONE and template is not None and template.knows_tools:
            found.append("tools")
        if parsers.reasoning != NONE:
            found.append("thinking")
        if model.pooling.ranker is Ranker.COSINE:
            found.append("embedding")
        return found


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
