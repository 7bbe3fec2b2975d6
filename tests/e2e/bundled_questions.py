"""Questions to the bundled model that its evaluation lacks: several about one text, long answers, conversations."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from tools.bundled_model.cases import Case, of_skill
from tools.bundled_model.conversation import Mentions, Message
from tools.bundled_model.lexicon import Lexicon, Split
from tools.bundled_model.scene import Scene
from tools.bundled_model.skills import chat, facts, filler, letters, numbers, recall

_FACTS, _FILLERS = 6, 3


def scene(name: str) -> Scene:
    """Held-out words and names, drawn from `name`."""
    made = Scene(random.Random(name), Lexicon(Split.HELD_OUT))
    made.may_ask_to_think = False
    return made


def texts_with_questions(count: int) -> Iterator[list[Case]]:
    """Of `count` texts, the questions about each: their prompts differ only after the text."""
    for number in range(count):
        here = scene(f"text {number}")
        told = []
        for _ in range(_FACTS):
            told.append(facts.draw(here))
            facts.remember(here, told[-1])
        sentences = [fact.tells[0] for fact in told] + [filler.sentence(here) for _ in range(_FILLERS)]
        text, values = " ".join(sentences), {fact.value for fact in told}
        yield [
            Case(
                (Message("user", f"{text} {fact.asks[0]}"),),
                Mentions(fact.value, wrong=sorted(values - {fact.value})),
            )
            for fact in told
        ]


def long_answers(seed: int, count: int) -> Iterator[Case]:
    """`count` cases whose answers tend to be long: counting, and the repeating of long texts."""
    counting = of_skill("count", seed)
    for number in range(count // 2):
        here = scene(f"long {number}")
        here.room = (100, 200, 300)[number % 3]
        question, answer = letters.repeat_long(here)
        assert answer.check is not None
        yield Case((question,), answer.check)
        yield next(counting)


def conversations(count: int) -> Iterator[list[Message]]:
    """What a user says in each of `count` conversations: tells facts, talks of other things, asks for a fact.

    Each message is followed by the answer that it expects; the last answer's check says whether the fact is in it.
    """
    for number in range(count):
        here = scene(f"conversation {number}")
        others = itertools.chain(letters.repeat(here), numbers.calculate(here), chat.small_talk(here))
        yield [*recall.tell(here), *others, *recall.ask_told(here)]
