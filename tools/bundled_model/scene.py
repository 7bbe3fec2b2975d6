"""Where a skill speaks: the random source, the words of its split, what was said before, and how much room is left.

Every skill is a function of a scene to the messages of one episode. The scene gives user messages their careless
touches (small letters, no full stop) and assistant messages their reasoning where it was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tools.bundled_model.conversation import Check, Message, Thinks
from tools.bundled_model.lexicon import Lexicon

THINK_REQUESTS = ("Think first.", "Think before you answer.", "Think step by step.", "Please think about it first.")
_THINK_SHARE = 0.06  # of the exchanges in which nothing else asks for reasoning
_CARELESS_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that the user tells and may ask for later.

    `tells` say it, `asks` ask for it, `answer` is the reply, `unknown` the reply when it was never told. `value` is
    what a right reply must contain. `key` names the fact: a conversation has at most one fact of a key.
    """

    key: str
    tells: Sequence[str]
    asks: Sequence[str]
    answer: str
    unknown: str
    value: str


@dataclass(slots=True)
class Scene:
    """`room`: tokens that an episode may take, roughly. `thinking`: the system message asks for reasoning always.
    `may_ask_to_think`: users ask for reasoning now and then."""

    rng: random.Random
    words: Lexicon
    room: int = 200
    thinking: bool = False
    may_ask_to_think: bool = True
    facts: dict[str, Fact] = field(default_factory=dict)

    def phrase(self, phrasings: Sequence[str], **slots: object) -> str:
        """One of `phrasings` with `slots` filled in, sometimes carelessly typed. No phrasing begins with a slot."""
        return self.careless(self.rng.choice(phrasings).format(**slots))

    def careless(self, text: str) -> str:
        """`text`, sometimes with a small first letter and no mark at the end."""
        if self.rng.random() >= _CARELESS_SHARE:
            return text
        return text[0].lower() + text[1:].removesuffix(".").removesuffix("?")

    def exchange(self, skill: str, question: str, answer: str, check: Check, thought: str) -> list[Message]:
        """A question and its answer; with `thought` as reasoning where the system message or the question asks."""
        asked = self.may_ask_to_think and not self.thinking and self.rng.random() < _THINK_SHARE
        if asked:
            question = f"{question} {self.rng.choice(THINK_REQUESTS)}"
        if asked or self.thinking:
            return self.reasoned(question, answer, check, thought)
        return [Message("user", question), Message("assistant", answer, skill=skill, check=check)]

    def reasoned(self, question: str, answer: str, check: Check, thought: str) -> list[Message]:
        """A question and its answer after `thought` in reasoning form."""
        reply = Message("assistant", answer, reasoning=thought, skill="think", check=Thinks(check))
        return [Message("user", question), reply]


Skill = Callable[[Scene], list[Message]]
