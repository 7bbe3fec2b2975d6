"""Whole conversations: which system message they open with, which tools they offer, which skills they mix.

A dialogue grows episode by episode, as long as its reader has room; facts told early can be asked for at any later
turn, so a long dialogue trains recall at all distances. Three kinds: plain, with tools, and with a JSON schema.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tools.bundled_model.conversation import Message
from tools.bundled_model.lexicon import Lexicon, Split
from tools.bundled_model.scene import Scene, Skill
from tools.bundled_model.skills import chat, extraction, letters, numbers, recall
from tools.bundled_model.skills import tools as tool_use

SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are Baton Tiny.",
    "Be brief.",
    "You are a friendly chat model. Answer in short sentences.",
    "Answer the questions of the user.",
)
THINKING_TEXTS = ("Think before you answer.", "Think first, then answer.", "Always think step by step.")

_PLAIN: Mapping[Skill, float] = {
    recall.passage: 4.0,
    recall.tell: 2.0,
    recall.ask: 4.0,
    letters.repeat: 2.0,
    letters.spell: 4.0,
    letters.reverse: 3.5,
    numbers.count: 1.3,
    numbers.calculate: 7.0,
    numbers.in_steps: 2.0,
    numbers.sort: 3.5,
    numbers.extreme: 1.5,
    extraction.extract: 4.0,
    chat.small_talk: 1.2,
    chat.unknown: 2.0,
}
_LEARNED_LAST: Mapping[Skill, float] = {
    letters.spell: 2.0,
    letters.reverse: 2.0,
    numbers.count: 1.5,
    numbers.calculate: 2.0,
    numbers.sort: 3.0,
    numbers.extreme: 1.0,
    extraction.extract: 1.5,
}
_BESIDE_TOOLS: Mapping[Skill, float] = {chat.small_talk: 3.0, chat.unknown: 1.0, recall.tell: 1.0, recall.ask: 1.0}
_TOOL_SHARE = 0.75  # of the episodes of a dialogue that offers tools
_KINDS = {"plain": 0.68, "tools": 0.18, "schema": 0.14}


@dataclass(frozen=True, slots=True)
class Mix:
    """What plain dialogues have more of: a share of `copying` of their episodes repeats long texts, where recall grows
    from; of the others, a share of `drill` shows the skills that are learned last."""

    copying: float = 0.0
    drill: float = 0.0


AS_IS = Mix()


class Dialogue:
    """A conversation being made. `opening` comes first; `next_episode` any number of times after it."""

    def __init__(self, seed: int | str, split: Split, room: int, mix: Mix = AS_IS) -> None:
        """`room`: tokens that the whole conversation will have, roughly."""
        self._mix = AS_IS
        self._scene = Scene(random.Random(seed), Lexicon(split), room)
        rng = self._scene.rng
        kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        self.tools: tuple[Mapping[str, Any], ...] = ()
        self._scene.thinking = kind != "schema" and rng.random() < 0.07
        system = self._system_text()
        if kind == "schema":
            system, skill = extraction.schema(self._scene)
            self._skills: Mapping[Skill, float] = {skill: 1.0}
        elif kind == "tools":
            offered = tool_use.offer(self._scene)
            self.tools = tuple(tool.as_openai() for tool in offered)
            self._skills = _with_tools(offered)
        else:
            self._skills, self._mix = _PLAIN, mix
        self.opening = [Message("system", system)] if system or self.tools else []

    def next_episode(self, room: int) -> list[Message]:
        """Messages from a user's to an assistant's, meant to take at most about `room` tokens."""
        self._scene.room = room
        rng, skills = self._scene.rng, self._skills
        if self._mix.copying and rng.random() < self._mix.copying:
            return letters.repeat_long(self._scene)
        if self._mix.drill and rng.random() < self._mix.drill:
            skills = _LEARNED_LAST
        skill = rng.choices(list(skills), list(skills.values()))[0]
        return skill(self._scene)

    def _system_text(self) -> str:
        rng, drawn = self._scene.rng, self._scene.rng.random()
        if self._scene.thinking:
            return rng.choice(THINKING_TEXTS)
        if drawn < 0.12:
            return recall.system_facts(self._scene)
        return rng.choice(SYSTEM_TEXTS) if drawn < 0.35 else ""


def _with_tools(offered: list[tool_use.Tool]) -> Mapping[Skill, float]:
    uses: list[Callable[[Scene], list[Message]]] = [partial(tool_use.use, tool=tool) for tool in offered]
    beside = sum(_BESIDE_TOOLS.values())
    weights: dict[Skill, float] = {use: _TOOL_SHARE / len(uses) for use in uses}
    return weights | {skill: (1 - _TOOL_SHARE) * weight / beside for skill, weight in _BESIDE_TOOLS.items()}
