"""JSON out of sentences: fields that the user names, or the properties of a schema in the system message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial

from tools.bundled_model.conversation import Json, Message
from tools.bundled_model.scene import Scene, Skill
from tools.bundled_model.skills import records
from tools.bundled_model.skills.records import JsonValue, Record

_EXTRACT = (
    "Extract the {fields} from: {text}",
    "Extract the {fields} from: {text}",
    "Extract {fields}: {text}",
    "Extract the {fields} as JSON: {text}",
    "Give me the {fields} as JSON. {text}",
    "Return the {fields} as JSON from this text: {text}",
)
_SCHEMA = (
    "Answer in JSON with this schema: {schema}",
    "Reply only with JSON that follows this schema: {schema}",
    "Use this JSON schema for your answers: {schema}",
)
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "name": ("name", "name", "full_name", "person"),
    "age": ("age", "age", "years"),
    "city": ("city", "city", "town", "home"),
    "job": ("job", "profession"),
    "quantity": ("quantity", "count", "amount"),
    "item": ("item", "product"),
    "price": ("price", "cost", "dollars"),
    "phone": ("phone", "phone_number"),
    "object": ("object", "thing"),
    "color": ("color", "colour"),
    "weight": ("weight", "grams"),
    "place": ("place", "room"),
}
_RESULT_NAMES = ("result", "answer", "value", "total", "number", "solution")


def extract(scene: Scene) -> list[Message]:
    """The user names some of a sentence's fields, in any order."""
    record = records.draw(scene)
    wanted = _some_fields(scene, record)
    question = scene.phrase(_EXTRACT, fields=_in_words(wanted), text=record.text)
    return _json_reply(scene, "extract JSON", question, {name: record.fields[name] for name in wanted})


def schema(scene: Scene) -> tuple[str, Skill]:
    """A system message with a schema, and the skill of answering in it."""
    if scene.rng.random() < 0.25:
        key = scene.rng.choice(_RESULT_NAMES)
        return _schema_text(scene, {key: 0}), partial(_sum_reply, key=key)
    record = records.draw(scene)
    names = {field: scene.rng.choice(_OTHER_NAMES[field]) for field in _some_fields(scene, record)}
    text = _schema_text(scene, {name: record.fields[field] for field, name in names.items()})
    return text, partial(_record_reply, names=names)


def _record_reply(scene: Scene, names: Mapping[str, str]) -> list[Message]:
    record = _having(scene, names)
    question = record.text if scene.rng.random() < 0.6 else f"Extract the data: {record.text}"
    reply = {name: record.fields[field] for field, name in names.items()}
    return _json_reply(scene, "JSON schema", question, reply)


def _having(scene: Scene, fields: Iterable[str]) -> Record:
    while True:
        record = records.draw(scene)
        if set(fields) <= record.fields.keys():
            return record


def _sum_reply(scene: Scene, key: str) -> list[Message]:
    a, b = scene.words.pair(scene.rng, 0, 50)
    question = scene.phrase(("What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}."), a=a, b=b)
    return _json_reply(scene, "JSON schema", question, {key: a + b})


def _json_reply(scene: Scene, skill: str, question: str, reply: dict[str, JsonValue]) -> list[Message]:
    return scene.exchange(skill, question, json.dumps(reply), Json(reply), "I answer in JSON.")


def _some_fields(scene: Scene, record: Record) -> list[str]:
    names = list(record.fields)
    wanted = scene.rng.sample(names, scene.rng.randint(1, len(names)))
    return wanted if scene.rng.random() < 0.3 else [name for name in names if name in wanted]


def _in_words(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _schema_text(scene: Scene, example: Mapping[str, JsonValue]) -> str:
    properties = {name: {"type": "integer" if isinstance(value, int) else "string"} for name, value in example.items()}
    schema: dict[str, object] = {"type": "object", "properties": properties}
    if scene.rng.random() < 0.6:
        schema["required"] = list(properties)
    return scene.rng.choice(_SCHEMA).format(schema=json.dumps(schema))
