"""JSON schemas as those mean them who ask for output: an object has the properties that are named, no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COMPOSED = ("anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "patternProperties", "unevaluatedProperties")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "$defs", "definitions")


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema`, with `additionalProperties: false` in objects that name properties and do not say it themselves.

    Whatever it allows, `schema` allows. A schema with `allOf`, whose parts together name an object's properties, is
    left as it is. Raises RecursionError for one that is nested too deeply.
    """
    return dict(schema) if _mentions(schema, "allOf") else _closed(schema)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(schema)
    for key in _MAPS:
        if isinstance(schema.get(key), Mapping):
            found[key] = {name: _part(part) for name, part in schema[key].items()}
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            found[key] = [_part(part) for part in schema[key]]
    if "items" in schema:
        found["items"] = _part(schema["items"])
    if "properties" in schema and not any(key in schema for key in _COMPOSED):
        found.setdefault("additionalProperties", False)
    return found


def _part(schema: Any) -> Any:
    return _closed(schema) if isinstance(schema, Mapping) else schema


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, Mapping):
        return key in value or any(_mentions(part, key) for part in value.values())
    return isinstance(value, list) and any(_mentions(part, key) for part in value)
