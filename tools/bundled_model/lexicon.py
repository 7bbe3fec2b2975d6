"""Words, names and numbers that conversations are made of, split into those for training and those held out.

The bottom of the data generator. The lists in words.txt are written for this project; names and words beyond them are
built from syllables. Whether something belongs to training or is held out depends only on its own spelling (a
checksum), so the two sides can never overlap, whatever the seeds. Knows no conversations and no tokens.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from enum import Enum
from pathlib import Path


def _read_lists() -> dict[str, tuple[str, ...]]:
    lists: dict[str, tuple[str, ...]] = {}
    text = Path(__file__).with_name("words.txt").read_text()
    for entry in text.replace("\n    ", " ").splitlines():
        if not entry.startswith("#"):
            name, _, words = entry.partition(":")
            lists[name] = tuple(words.split())
    return lists


_LISTS = _read_lists()
COLOURS, OBJECTS, PLACES, ANIMALS, FRUITS, MATERIALS = (
    _LISTS[name] for name in ("colours", "objects", "places", "animals", "fruits", "materials")
)
ADJECTIVES, VERBS, PEOPLE = (_LISTS[name] for name in ("adjectives", "verbs", "people"))
_CLOSED = {*COLOURS, *OBJECTS, *PLACES, *ANIMALS, *FRUITS, *MATERIALS, *ADJECTIVES, *VERBS, *PEOPLE}
FIRST_NAMES, LAST_NAMES, CITIES = (_LISTS[name] for name in ("first_names", "last_names", "cities"))

_ONSETS, _VOWELS, _NAME_ENDS = (_LISTS[name] for name in ("onsets", "vowels", "name_endings"))
_CODAS = ("", "", "", "n", "r", "l", "s", "t", "m", "k")
_LETTERS = "abcdefghijklmnopqrstuvwxyz" + "aeiou" * 3
_HELD_OUT_SHARE = 8  # one in this many


def syllables() -> list[str]:
    """All that made-up words and names consist of, but for single letters."""
    return sorted({onset + vowel for onset in _ONSETS for vowel in _VOWELS} | set(_NAME_ENDS))


class Split(Enum):
    TRAIN = "train"
    HELD_OUT = "held_out"


def split_of(item: str) -> Split:
    """Which side `item` belongs to, from its spelling alone; case does not matter."""
    checksum = zlib.crc32(item.lower().encode())
    return Split.HELD_OUT if checksum % _HELD_OUT_SHARE == 0 else Split.TRAIN


PLAIN = tuple(word for word in _LISTS["plain"] if split_of(word) is Split.TRAIN)
RESERVED = tuple(word for word in _LISTS["plain"] if split_of(word) is Split.HELD_OUT)  # in no training conversation


class Lexicon:
    """Draws items of one split. Closed lists (colours, objects, places) serve both splits; what is combined does not.

    "red" and "box" occur in training whichever side "red box" is on. Held-out plain words are the reserved ones.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self._words = sorted({*_CLOSED, *PLAIN}) if split is Split.TRAIN else RESERVED
        self._first_names = self._mine(FIRST_NAMES)
        self._last_names = self._mine(LAST_NAMES)
        self._cities = self._mine(CITIES)

    def _mine(self, items: Sequence[str]) -> list[str]:
        return [item for item in items if split_of(item) is self.split]

    def owns(self, item: str) -> bool:
        """True when `item` is on this lexicon's side."""
        return split_of(item) is self.split

    def word(self, rng: random.Random) -> str:
        """A plain English word."""
        return rng.choice(self._words)

    def made_up_word(self, rng: random.Random) -> str:
        """A word of two or three syllables, most likely in no dictionary; one in four is any string of letters."""
        while True:
            if rng.random() < 0.25:
                word = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 7)))
            else:
                count = rng.choice((2, 2, 3))
                word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count)) + rng.choice(_CODAS)
            if self.owns(word):
                return word

    def any_word(self, rng: random.Random) -> str:
        return self.word(rng) if rng.random() < 0.5 else self.made_up_word(rng)

    def first_name(self, rng: random.Random) -> str:
        return rng.choice(self._first_names) if rng.random() < 0.5 else self._made_up_name(rng)

    def last_name(self, rng: random.Random) -> str:
        return rng.choice(self._last_names) if rng.random() < 0.5 else self._made_up_name(rng)

    def full_name(self, rng: random.Random) -> str:
        return f"{self.first_name(rng)} {self.last_name(rng)}"

    def city(self, rng: random.Random) -> str:
        return rng.choice(self._cities) if rng.random() < 0.5 else self._made_up_name(rng)

    def _made_up_name(self, rng: random.Random) -> str:
        """A name of two to four syllables; one in four is any string of letters."""
        while True:
            if rng.random() < 0.25:
                name = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 7))).capitalize()
            else:
                stem = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 1, 2))))
                name = (stem + rng.choice("bdfgklmnrstvz") + rng.choice(_NAME_ENDS)).capitalize()
            if self.owns(name):
                return name

    def thing(self, rng: random.Random) -> str:
        """An object as people name it: "red box"."""
        while True:
            thing = f"{rng.choice(COLOURS)} {rng.choice(OBJECTS)}"
            if self.owns(thing):
                return thing

    def digits(self, rng: random.Random, low: int = 3, high: int = 5) -> str:
        """A number of `low` to `high` digits without a leading zero, as text."""
        while True:
            length = rng.randint(low, high)
            number = str(rng.randint(10 ** (length - 1), 10**length - 1))
            if self.owns(number):
                return number

    def pair(self, rng: random.Random, low: int, high: int) -> tuple[int, int]:
        """Two numbers between `low` and `high`; the pair (in this order) is on this side, each number may not be."""
        while True:
            a, b = rng.randint(low, high), rng.randint(low, high)
            if self.owns(f"{a}|{b}"):
                return a, b
