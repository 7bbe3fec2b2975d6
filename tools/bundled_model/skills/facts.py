"""Kinds of facts that a user may tell: codes of things, where people live, favourites, hiding places, secret words.

`draw` makes a new one whose key nobody in the scene has used, so that every question has one right answer.
"""

from __future__ import annotations

from collections.abc import Callable

from tools.bundled_model import lexicon
from tools.bundled_model.scene import Fact, Scene

_NUMBER_OF = ("code", "number", "pin", "password", "price", "weight", "id")
_FAVOURITES = {"colour": lexicon.COLOURS, "color": lexicon.COLOURS, "animal": lexicon.ANIMALS, "fruit": lexicon.FRUITS}


def draw(scene: Scene) -> Fact:
    """A fact whose key is new to the scene. It is not yet told: see `remember`."""
    while True:
        fact = scene.rng.choices(_KINDS, _WEIGHTS)[0](scene)
        if fact.key not in scene.facts:
            return fact


def remember(scene: Scene, fact: Fact) -> None:
    """Count `fact` as told, so that it can be asked for and is not contradicted."""
    scene.facts[fact.key] = fact


def _number(scene: Scene) -> Fact:
    what, thing = scene.rng.choice(_NUMBER_OF), scene.words.thing(scene.rng)
    value = scene.words.digits(scene.rng)
    said = f"The {what} of the {thing} is {value}."
    return Fact(
        key=f"{what} {thing}",
        tells=(said, said, said, f"The {thing} has the {what} {value}."),
        asks=(
            f"What is the {what} of the {thing}?",
            f"What is the {what} of the {thing}?",
            f"Tell me the {what} of the {thing}.",
            f"Which {what} does the {thing} have?",
            f"Do you remember the {what} of the {thing}?",
        ),
        answer=said,
        unknown=f"You have not told me the {what} of the {thing}.",
        value=value,
    )


def _home(scene: Scene) -> Fact:
    name, city = scene.words.first_name(scene.rng), scene.words.city(scene.rng)
    said = f"{name} lives in {city}."
    return Fact(
        key=f"home {name}",
        tells=(said, said, f"{name} has a house in {city}."),
        asks=(f"Where does {name} live?", f"In which city does {name} live?", f"Which city does {name} live in?"),
        answer=said,
        unknown=f"You have not told me where {name} lives.",
        value=city,
    )


def _age(scene: Scene) -> Fact:
    name, age = scene.words.first_name(scene.rng), scene.rng.randint(5, 99)
    said = f"{name} is {age} years old."
    return Fact(
        key=f"age {name}",
        tells=(said, said, f"The age of {name} is {age}."),
        asks=(f"How old is {name}?", f"What is the age of {name}?"),
        answer=said,
        unknown=f"You have not told me how old {name} is.",
        value=str(age),
    )


def _favourite(scene: Scene) -> Fact:
    what = scene.rng.choice(list(_FAVOURITES))
    spelled = "favorite" if what == "color" else "favourite"
    name, value = scene.words.first_name(scene.rng), scene.rng.choice(_FAVOURITES[what])
    said = f"The {spelled} {what} of {name} is {value}."
    return Fact(
        key=f"favourite {what} {name}",
        tells=(said, said, f"{name} likes {value} best."),
        asks=(f"What is the {spelled} {what} of {name}?", f"Which {what} does {name} like best?"),
        answer=said,
        unknown=f"You have not told me the {spelled} {what} of {name}.",
        value=value,
    )


def _hiding_place(scene: Scene) -> Fact:
    thing, place = scene.words.thing(scene.rng), scene.rng.choice(lexicon.PLACES)
    said = f"The {thing} is in the {place}."
    return Fact(
        key=f"place {thing}",
        tells=(said, said, f"I put the {thing} in the {place}."),
        asks=(f"Where is the {thing}?", f"Where can I find the {thing}?"),
        answer=said,
        unknown=f"You have not told me where the {thing} is.",
        value=place,
    )


def _secret_word(scene: Scene) -> Fact:
    what, word = scene.rng.choice(("secret", "magic")), scene.words.any_word(scene.rng)
    said = f"The {what} word is {word}."
    return Fact(
        key=f"{what} word",
        tells=(said, said, f"Remember the {what} word: {word}."),
        asks=(f"What is the {what} word?", f"Tell me the {what} word.", f"Do you remember the {what} word?"),
        answer=said,
        unknown=f"You have not told me the {what} word.",
        value=word,
    )


def _own_name(scene: Scene) -> Fact:
    name = scene.words.first_name(scene.rng)
    return Fact(
        key="own name",
        tells=(f"My name is {name}.", f"I am {name}.", f"I am called {name}."),
        asks=("What is my name?", "Who am I?", "Do you remember my name?"),
        answer=f"Your name is {name}.",
        unknown="You have not told me your name.",
        value=name,
    )


def _meaning(scene: Scene) -> Fact:
    word, value = scene.words.made_up_word(scene.rng), scene.words.digits(scene.rng, 2, 4)
    return Fact(
        key=f"value {word}",
        tells=(f"The value of {word} is {value}.", f"{word} = {value}.", f"{word}: {value}."),
        asks=(f"What is the value of {word}?", f"What is {word}?"),
        answer=f"The value of {word} is {value}.",
        unknown=f"You have not told me the value of {word}.",
        value=value,
    )


_KINDS: list[Callable[[Scene], Fact]] = [
    _number,
    _home,
    _age,
    _favourite,
    _hiding_place,
    _secret_word,
    _own_name,
    _meaning,
]
_WEIGHTS = [6, 2, 1, 2, 2, 1, 1, 2]
