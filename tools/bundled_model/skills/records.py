"""Sentences that hold a record of fields, such as a person's name, age and city: what JSON is extracted from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tools.bundled_model import lexicon
from tools.bundled_model.scene import Scene

JsonValue = str | int


@dataclass(frozen=True, slots=True)
class Record:
    """`text` says all of `fields`, in the order in which they are told."""

    text: str
    fields: Mapping[str, JsonValue]


def draw(scene: Scene) -> Record:
    return scene.rng.choices(_KINDS, (3, 3, 2, 2, 1))[0](scene)


def _fill(scene: Scene, texts: tuple[str, ...], **fields: JsonValue) -> Record:
    text = scene.rng.choice(texts)
    told = sorted((name for name in fields if "{" + name + "}" in text), key=lambda name: text.index("{" + name + "}"))
    return Record(text.format(**fields), {name: fields[name] for name in told})


def _person_age(scene: Scene) -> Record:
    name = scene.words.full_name(scene.rng) if scene.rng.random() < 0.7 else scene.words.first_name(scene.rng)
    return _fill(
        scene,
        (
            "{name} is {age} years old.",
            "{name} is {age} years old and lives in {city}.",
            "{name}, aged {age}, lives in {city}.",
            "My friend {name} from {city} is {age} years old.",
            "{name} ({age}) comes from {city}.",
        ),
        name=name,
        age=scene.rng.randint(5, 99),
        city=scene.words.city(scene.rng),
    )


def _person_job(scene: Scene) -> Record:
    return _fill(
        scene,
        (
            "{name} works as a {job} in {city}.",
            "{name} is a {job} from {city}.",
            "{name} is a {job} and is {age} years old.",
            "The {job} {name} lives in {city}.",
        ),
        name=scene.words.full_name(scene.rng),
        job=scene.rng.choice(lexicon.PEOPLE),
        city=scene.words.city(scene.rng),
        age=scene.rng.randint(18, 80),
    )


def _order(scene: Scene) -> Record:
    return _fill(
        scene,
        (
            "{name} bought {quantity} {item}s for {price} dollars.",
            "{name} ordered {quantity} {item}s.",
            "We sold {quantity} {item}s at {price} dollars each to {name}.",
            "The {item} costs {price} dollars.",
        ),
        name=scene.words.full_name(scene.rng) if scene.rng.random() < 0.5 else scene.words.first_name(scene.rng),
        quantity=scene.rng.randint(2, 99),
        item=scene.rng.choice([item for item in lexicon.OBJECTS if not item.endswith(("x", "s", "y", "ch", "f"))]),
        price=scene.rng.randint(2, 999),
    )


def _contact(scene: Scene) -> Record:
    return _fill(
        scene,
        (
            "You can call {name} at {phone}.",
            "The phone number of {name} is {phone}.",
            "{name} lives in {city}, phone {phone}.",
            "Call {phone} and ask for {name}.",
        ),
        name=scene.words.full_name(scene.rng),
        phone=scene.words.digits(scene.rng, 4, 7),
        city=scene.words.city(scene.rng),
    )


def _thing(scene: Scene) -> Record:
    return _fill(
        scene,
        (
            "The {object} is {color} and weighs {weight} grams.",
            "A {color} {object} stands in the {place}.",
            "I found a {color} {object} in the {place}.",
        ),
        object=scene.rng.choice(lexicon.OBJECTS),
        color=scene.rng.choice(lexicon.COLOURS),
        weight=scene.rng.randint(2, 999),
        place=scene.rng.choice(lexicon.PLACES),
    )


_KINDS: list[Callable[[Scene], Record]] = [_person_age, _person_job, _order, _contact, _thing]
