"""What evaluation asks: held-out prompts by skill, each with the check for its answer.

Every word, name and number comes from the held-out side of the lexicon; seeds are never those of training batches.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tools.bundled_model.conversation import Check, Message
from tools.bundled_model.lexicon import Lexicon, Split
from tools.bundled_model.scene import Scene, Skill
from tools.bundled_model.skills import chat, extraction, letters, numbers, recall
from tools.bundled_model.skills import tools as tool_use

DISTANCES = (20, 100, 500, 1000, 2000)  # tokens between a fact and its question, roughly
_FILLER_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation whose next message the model is to write, and what is right."""

    messages: tuple[Message, ...]
    check: Check
    tools: tuple[Mapping[str, Any], ...] = ()


def by_skill(seed: int, count: int) -> dict[str, list[Case]]:
    """`count` cases of each skill, the same for the same seed."""
    return {name: list(itertools.islice(of_skill(name, seed), count)) for name in _MAKERS}


def of_skill(name: str, seed: int) -> Iterator[Case]:
    """Cases of one skill, without end; those of `by_skill` are the first ones."""
    return (_MAKERS[name](_scene(name, seed, index)) for index in itertools.count())


def _scene(name: str, seed: int, index: int) -> Scene:
    scene = Scene(random.Random(f"evaluation {name} {seed} {index}"), Lexicon(Split.HELD_OUT), room=400)
    scene.may_ask_to_think = False
    return scene


def _last(messages: list[Message], tools: tuple[Mapping[str, Any], ...] = ()) -> Case:
    """All but the last message as the prompt; the last one's check."""
    check = messages[-1].check
    assert check is not None
    return Case(tuple(messages[:-1]), check, tools)


def _of(skill: Skill) -> Callable[[Scene], Case]:
    return lambda scene: _last(skill(scene))


def _of_kind(skill: Skill, name: str) -> Callable[[Scene], Case]:
    """Cases of one name among those that a skill function makes."""

    def make(scene: Scene) -> Case:
        while True:
            messages = skill(scene)
            if messages[-1].skill == name:
                return _last(messages)

    return make


def _recall_at(distance: int) -> Callable[[Scene], Case]:
    return lambda scene: _last(recall.at_distance(scene, max(1, distance // _FILLER_TOKENS - 1)))


def _recall_across_turns(scene: Scene) -> Case:
    """A fact, two to six other exchanges, then the question."""
    messages = recall.tell(scene)
    others = (letters.repeat, numbers.calculate, chat.small_talk, chat.unknown, numbers.extreme)
    for _ in range(scene.rng.randint(2, 6)):
        messages += scene.rng.choice(others)(scene)
    return _last(messages + recall.ask_told(scene))


def _not_told(scene: Scene) -> Case:
    return _last(recall.tell(scene) + recall.ask_untold(scene))


def _schema(scene: Scene) -> Case:
    system, skill = extraction.schema(scene)
    return _last([Message("system", system), *skill(scene)])


def _call(scene: Scene) -> Case:
    tools = tool_use.offer(scene)
    request, called, *_ = tool_use.use(scene, scene.rng.choice(tools))
    return _last([Message("system"), request, called], tuple(tool.as_openai() for tool in tools))


def _tool_result(scene: Scene) -> Case:
    tools = tool_use.offer(scene)
    messages = tool_use.use(scene, scene.rng.choice(tools))
    return _last([Message("system"), *messages], tuple(tool.as_openai() for tool in tools))


def _thinking(scene: Scene) -> Case:
    scene.thinking = True
    skill = scene.rng.choice((letters.spell, numbers.calculate, numbers.extreme, extraction.extract))
    return _last([Message("system", "Think before you answer."), *skill(scene)])


_MAKERS: Mapping[str, Callable[[Scene], Case]] = {
    **{f"recall at about {distance} tokens": _recall_at(distance) for distance in DISTANCES},
    "recall across turns": _recall_across_turns,
    "says what it was not told": _not_told,
    "repeat": _of(letters.repeat),
    "spell": _of(letters.spell),
    "reverse": _of(letters.reverse),
    "count": _of(numbers.count),
    "add": _of_kind(numbers.calculate, "add"),
    "subtract": _of_kind(numbers.calculate, "subtract"),
    "sort": _of(numbers.sort),
    "largest or smallest": _of(numbers.extreme),
    "extract JSON": _of(extraction.extract),
    "JSON by schema": _schema,
    "call a tool": _call,
    "use a tool's result": _tool_result,
    "think, sums in steps": _of(numbers.in_steps),
    "think, other skills": _thinking,
    "greeting": _of_kind(chat.small_talk, "greeting"),
    "what are you": _of_kind(chat.small_talk, "identity"),
    "does not know": _of(chat.unknown),
}
