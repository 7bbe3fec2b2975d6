"""Kinds of facts that a user may tell: codes of things, where people live, favourites, hiding places, secret words.

`draw` makes a new one whose key nobody in the scene has used, so that every question has one right answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tools.bundled_model import lexicon
from tools.bundled_model.scene import Fact, Scene

_NUMBER_OF = ("code", "number", "pin", "password", "price", "weight", "id")
_FAVOURITES = {"colour": lexicon.COLOURS, "color": lexicon.COLOURS, "animal": lexicon.ANIMALS, "fruit": lexicon.FRUITS}


def draw(scene: Scene) -> Fact:
    """A fact whose key is new to the scene. It is not yet told: see `remember`."""
    while True:
        fact = scene.rng.choices(_KINDS, [kind.weight for kind in _KINDS])[0].draw(scene)
        if fact.key not in scene.facts:
            return fact


def remember(scene: Scene, fact: Fact) -> None:
    """Count `fact` as told, so that it can be asked for and is not contradicted."""
    scene.facts[fact.key] = fact


@dataclass(frozen=True, slots=True)
class _Kind:
    """How facts of one kind are said: texts with slots, and what fills them.

    `slots` draws the fillings; `value` is one of them. The answer is the first text of `tells` unless given.
    `unknown` completes "You have not told me".
    """

    weight: int
    slots: Callable[[Scene], Mapping[str, str]]
    key: str
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    unknown: str
    answer: str = ""

    def draw(self, scene: Scene) -> Fact:
        slots = self.slots(scene)
        return Fact(
            key=self.key.format(**slots),
            tells=tuple(text.format(**slots) for text in self.tells),
            asks=tuple(text.format(**slots) for text in self.asks),
            answer=(self.answer or self.tells[0]).format(**slots),
            unknown=f"You have not told me {self.unknown.format(**slots)}.",
            value=slots["value"],
        )


def _number(scene: Scene) -> Mapping[str, str]:
    what, thing = scene.rng.choice(_NUMBER_OF), scene.words.thing(scene.rng)
    return {"what": what, "thing": thing, "value": scene.words.digits(scene.rng)}


def _home(scene: Scene) -> Mapping[str, str]:
    return {"name": scene.words.first_name(scene.rng), "value": scene.words.city(scene.rng)}


def _age(scene: Scene) -> Mapping[str, str]:
    return {"name": scene.words.first_name(scene.rng), "value": str(scene.rng.randint(5, 99))}


def _favourite(scene: Scene) -> Mapping[str, str]:
    what = scene.rng.choice(list(_FAVOURITES))
    spelled = "favorite" if what == "color" else "favourite"
    name, value = scene.words.first_name(scene.rng), scene.rng.choice(_FAVOURITES[what])
    return {"what": what, "favourite": spelled, "name": name, "value": value}


def _hiding_place(scene: Scene) -> Mapping[str, str]:
    return {"thing": scene.words.thing(scene.rng), "value": scene.rng.choice(lexicon.PLACES)}


def _secret_word(scene: Scene) -> Mapping[str, str]:
    return {"what": scene.rng.choice(("secret", "magic")), "value": scene.words.any_word(scene.rng)}


def _own_name(scene: Scene) -> Mapping[str, str]:
    return {"value": scene.words.first_name(scene.rng)}


def _meaning(scene: Scene) -> Mapping[str, str]:
    return {"word": scene.words.made_up_word(scene.rng), "value": scene.words.digits(scene.rng, 2, 4)}


# A text that stands twice is said twice as often.
_KINDS = (
    _Kind(
        weight=6,
        slots=_number,
        key="{what} {thing}",
        tells=(*("The {what} of the {thing} is {value}.",) * 3, "The {thing} has the {what} {value}."),
        asks=(
            "What is the {what} of the {thing}?",
            "What is the {what} of the {thing}?",
            "Tell me the {what} of the {thing}.",
            "Which {what} does the {thing} have?",
            "Do you remember the {what} of the {thing}?",
        ),
        unknown="the {what} of the {thing}",
    ),
    _Kind(
        weight=2,
        slots=_home,
        key="home {name}",
        tells=(*("{name} lives in {value}.",) * 2, "{name} has a house in {value}."),
        asks=("Where does {name} live?", "In which city does {name} live?", "Which city does {name} live in?"),
        unknown="where {name} lives",
    ),
    _Kind(
        weight=1,
        slots=_age,
        key="age {name}",
        tells=(*("{name} is {value} years old.",) * 2, "The age of {name} is {value}."),
        asks=("How old is {name}?", "What is the age of {name}?"),
        unknown="how old {name} is",
    ),
    _Kind(
        weight=2,
        slots=_favourite,
        key="favourite {what} {name}",
        tells=(*("The {favourite} {what} of {name} is {value}.",) * 2, "{name} likes {value} best."),
        asks=("What is the {favourite} {what} of {name}?", "Which {what} does {name} like best?"),
        unknown="the {favourite} {what} of {name}",
    ),
    _Kind(
        weight=2,
        slots=_hiding_place,
        key="place {thing}",
        tells=(*("The {thing} is in the {value}.",) * 2, "I put the {thing} in the {value}."),
        asks=("Where is the {thing}?", "Where can I find the {thing}?"),
        unknown="where the {thing} is",
    ),
    _Kind(
        weight=1,
        slots=_secret_word,
        key="{what} word",
        tells=(*("The {what} word is {value}.",) * 2, "Remember the {what} word: {value}."),
        asks=("What is the {what} word?", "Tell me the {what} word.", "Do you remember the {what} word?"),
        unknown="the {what} word",
    ),
    _Kind(
        weight=1,
        slots=_own_name,
        key="own name",
        tells=("My name is {value}.", "I am {value}.", "I am called {value}."),
        asks=("What is my name?", "Who am I?", "Do you remember my name?"),
        unknown="your name",
        answer="Your name is {value}.",
    ),
    _Kind(
        weight=2,
        slots=_meaning,
        key="value {word}",
        tells=("The value of {word} is {value}.", "{word} = {value}.", "{word}: {value}."),
        asks=("What is the value of {word}?", "What is {word}?"),
        unknown="the value of {word}",
    ),
)
