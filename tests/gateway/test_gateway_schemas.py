from __future__ import annotations

import pytest

from baton.gateway.schemas import closed

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**OBJECT, "additionalProperties": False}

CASES = [
    (OBJECT, CLOSED),
    ({"properties": {"o": OBJECT}, "$defs": {"d": OBJECT}}, {"properties": {"o": CLOSED}, "$defs": {"d": CLOSED}}),
    ({"type": "array", "items": OBJECT, "prefixItems": [OBJECT]},
     {"type": "array", "items": CLOSED, "prefixItems": [CLOSED]}),
    ({"anyOf": [OBJECT, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
    ({**OBJECT, "additionalProperties": True}, {**OBJECT, "additionalProperties": True}),
    ({**OBJECT, "patternProperties": {}}, {**OBJECT, "patternProperties": {}}),
    ({"allOf": [OBJECT, OBJECT]}, {"allOf": [OBJECT, OBJECT]}),
    ({"type": "object"}, {"type": "object"}),
    ({"properties": {"properties": {"type": "string"}}},
     {"properties": {"properties": {"type": "string"}}, "additionalProperties": False}),
    ({"items": True, "const": OBJECT}, {"items": True, "const": OBJECT}),
]  # fmt: skip


@pytest.mark.parametrize("schema, expected", CASES, ids=str)
def test_objects_have_what_is_named(schema: dict, expected: dict) -> None:
    wanted = {**expected, "additionalProperties": False} if "$defs" in schema else expected
    assert closed(schema) == wanted
