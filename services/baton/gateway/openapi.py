"""`/openapi.json`: FastAPI's description of the paths, with the bodies that the endpoints validate themselves.

Endpoints read and validate bodies on their own (limits, typed errors, a thread for large ones), and take parameters
from the request, so FastAPI cannot see either; here they are added to its description.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_REF = "#/components/schemas/"
_PARAMETER = re.compile(r"\{([a-z_]+)\}")


def describe_bodies(app: FastAPI, bodies: dict[str, type[BaseModel]]) -> None:
    """Describe the JSON body of `POST path` for each (path, model) of `bodies`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _with_parameters(_with_bodies(document, bodies))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend its description


def _with_bodies(document: dict[str, Any], bodies: dict[str, type[BaseModel]]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path, model in bodies.items():
        api = model.__module__.split(".")[-2].capitalize()  # each has its own ChatRequest, Message, ...
        schema = model.model_json_schema(ref_template=_REF + api + "{model}")
        parts = {**schema.pop("$defs", {}), model.__name__: schema}
        schemas.update({api + name: part for name, part in parts.items()})
        reference = {"$ref": _REF + api + model.__name__}
        document["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": reference}},
        }
    return document


def _with_parameters(document: dict[str, Any]) -> dict[str, Any]:
    """The parts of paths that stand for something."""
    for path, methods in document["paths"].items():
        names = _PARAMETER.findall(path)
        for operation in methods.values() if names else ():
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
    return document
