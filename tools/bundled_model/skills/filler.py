"""Sentences that say nothing anybody will ask about: what stands between a fact and its question."""

from __future__ import annotations

from tools.bundled_model import lexicon
from tools.bundled_model.scene import Scene

_SENTENCES = (
    "The {person} {verb} the {adjective} {object} near the {place}.",
    "The {adjective} {animal} walked past the {place}.",
    "It was a {adjective} {plain} and the {person} {verb} some {material}.",
    "In the {place} there were many {fruit} trees and a {adjective} {object}.",
    "Every morning the {person} {verb} a {object} made of {material}.",
    "A {adjective} {person} {verb} the {plain} before dinner.",
    "Nobody saw the {animal} behind the {adjective} {object}.",
    "The {plain} was {adjective} and the {place} was {adjective2}.",
    "Later the {person} sold some {fruit} jam at the {place}.",
    "They talked about {plain} and {material} for a while.",
)


def sentence(scene: Scene) -> str:
    rng = scene.rng
    return rng.choice(_SENTENCES).format(
        person=rng.choice(lexicon.PEOPLE),
        verb=rng.choice(lexicon.VERBS),
        adjective=rng.choice(lexicon.ADJECTIVES),
        adjective2=rng.choice(lexicon.ADJECTIVES),
        object=rng.choice(lexicon.OBJECTS),
        place=rng.choice(lexicon.PLACES),
        animal=rng.choice(lexicon.ANIMALS),
        plain=rng.choice(lexicon.PLAIN),
        material=rng.choice(lexicon.MATERIALS),
        fruit=rng.choice(lexicon.FRUITS),
    )
