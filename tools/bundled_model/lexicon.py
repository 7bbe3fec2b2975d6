"""Words, names and numbers that conversations are made of, split into those for training and those held out.

The bottom of the data generator. All lists are written for this project; names and words beyond them are built from
syllables. Whether something belongs to training or is held out depends only on its own spelling (a checksum), so the
two sides can never overlap, whatever the seeds. Knows no conversations and no tokens.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from enum import Enum

COLOURS = """red blue green yellow black white orange purple pink brown grey silver golden violet scarlet amber ivory
crimson turquoise bronze""".split()
OBJECTS = """box bag door lamp chair table car bike boat key cup bottle basket drawer locker shelf book phone clock
coat hat shoe ring coin map letter parcel crate barrel bucket ladder hammer mirror piano guitar drum kite ball tent
train truck bus robot engine printer camera radio oven fridge cabinet safe chest vase pillow blanket candle flag bell
wheel""".split()
PLACES = """kitchen garden garage attic cellar office library hall bedroom bathroom barn shed school museum station
market harbour park forest tower bakery hotel theatre workshop""".split()
ANIMALS = """cat dog horse cow pig sheep goat duck goose hen rabbit fox wolf bear lion tiger monkey mouse frog fish
owl eagle parrot turtle whale shark spider snail""".split()
FRUITS = """apple pear plum cherry peach lemon lime grape melon mango banana fig berry olive tomato carrot onion
potato""".split()
MATERIALS = "wood stone glass iron paper cotton wool leather clay sand snow water copper steel rubber wax".split()
ADJECTIVES = """big small old new long short tall quiet loud bright dark warm cold soft hard heavy light clean dusty
happy sleepy brave clever gentle quick slow strange simple round narrow empty full busy calm""".split()
VERBS = """carried found painted moved washed opened closed dropped lifted followed watched repaired borrowed counted
pushed pulled covered noticed visited remembered forgot ordered packed shared""".split()
PEOPLE = """gardener teacher baker sailor farmer doctor driver singer painter writer builder tailor guard pilot nurse
student neighbour traveller child visitor""".split()
PLAIN = """sun moon star cloud rain wind storm river lake hill valley island bridge road street house roof wall floor
window winter summer spring autumn morning evening night minute hour week month year music song story game party dance
dream voice smile friend family brother sister mother father king queen bread butter cheese sugar honey coffee tea milk
soup salad dinner plate spoon knife fork pencil paint colour number letter question answer reason problem secret garden
planet rocket signal system window market orange silver copper marble velvet button pocket jacket ribbon basket blossom
meadow thunder lantern feather pebble shadow whisper journey harvest cottage village mountain ocean desert jungle castle
dragon wizard puzzle riddle compass anchor captain island treasure""".split()
FIRST_NAMES = """John Mary Anna Peter Paul Lucy Emma Oliver Mia Noah Liam Sofia Clara Hugo Oscar Alice Bob Carol David
Eve Frank Grace Henry Irene Jack Kate Leo Nina Otto Rosa Sam Tina Victor Wendy Adam Bella Carl Diana Eric Fiona George
Hanna Ivan Julia Karl Laura Martin Nora Olga Pedro Ruth Simon Tara Uma Vera Walter Yara Zoe Maria James Linda Robert
Susan Thomas Sarah Daniel""".split()
LAST_NAMES = """Smith Jones Brown Taylor Miller Wilson Moore Clark Lewis Walker Hall Young King Wright Hill Green Baker
Carter Parker Cook Bell Ward Gray Stone Fisher Mason Hunter Porter Turner Cooper Fox Reed Woods Marsh Lane
Doe""".split()
CITIES = """Paris London Berlin Madrid Rome Vienna Lisbon Dublin Oslo Prague Athens Cairo Tokyo Delhi Lima Boston
Chicago Denver Toronto Sydney Zurich Munich Hamburg Milan Geneva""".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fr gr kl pl pr sl st tr sh ch th".split()
_VOWELS = "a e i o u a e i o u ai ea oo".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "k"]
_NAME_ENDS = ["a", "o", "ia", "en", "in", "us", "el", "an", "is", "ar"]
_HELD_OUT_SHARE = 8  # one in this many


class Split(Enum):
    TRAIN = "train"
    HELD_OUT = "held_out"


def split_of(item: str) -> Split:
    """Which side `item` belongs to, from its spelling alone; case does not matter."""
    checksum = zlib.crc32(item.lower().encode())
    return Split.HELD_OUT if checksum % _HELD_OUT_SHARE == 0 else Split.TRAIN


class Lexicon:
    """Draws items of one split. Closed lists (colours, objects, places) serve both splits; what is combined does not.

    "red" and "box" occur in training whichever side "red box" is on.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self._words = self._mine(sorted({*PLAIN, *OBJECTS, *ANIMALS, *FRUITS, *MATERIALS, *PLACES, *ADJECTIVES}))
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

    def made_up_word(self, rng: random.Random, syllables: int = 0) -> str:
        """A pronounceable word of `syllables` syllables (0: two or three), most likely in no dictionary."""
        while True:
            count = syllables or rng.choice((2, 2, 3))
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
        while True:
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
