"""The generator of conversations: determinism, what is held out, and checks that tell right from wrong."""

from __future__ import annotations

import random
import re

import pytest

from tools.bundled_model import cases, lexicon
from tools.bundled_model.conversation import Message, Reply, ToolCall, parse_reply
from tools.bundled_model.dialogue import Dialogue
from tools.bundled_model.lexicon import Lexicon, Split, split_of
from tools.bundled_model.template import pieces


def _dialogue(seed: int, split: Split) -> list[Message]:
    dialogue = Dialogue(seed, split, 400)
    messages = list(dialogue.opening)
    for _ in range(4):
        messages += dialogue.next_episode(200)
    return messages


def _as_reply(message: Message) -> Reply:
    """The message as generated text, parsed again."""
    text = "".join(piece.text for piece in list(pieces(message))[1:-1])
    return parse_reply(text)


def test_same_seed_same_dialogue() -> None:
    for seed in range(20):
        assert _dialogue(seed, Split.TRAIN) == _dialogue(seed, Split.TRAIN)
    assert _dialogue(1, Split.TRAIN) != _dialogue(2, Split.TRAIN)


def test_splits_share_no_name_word_number_or_thing() -> None:
    rng = random.Random(0)
    train, held_out = Lexicon(Split.TRAIN), Lexicon(Split.HELD_OUT)
    for draw in ("first_name", "last_name", "city", "thing", "made_up_word", "word", "digits"):
        ours = {getattr(train, draw)(rng) for _ in range(1500)}
        theirs = {getattr(held_out, draw)(rng) for _ in range(400)}
        assert ours.isdisjoint(theirs), draw
    ours = {train.pair(rng, 0, 99) for _ in range(1500)}
    assert ours.isdisjoint({held_out.pair(rng, 0, 99) for _ in range(400)})


def test_held_out_names_and_words_are_in_no_training_dialogue() -> None:
    held_out = [name for name in (*lexicon.FIRST_NAMES, *lexicon.LAST_NAMES) if split_of(name) is Split.HELD_OUT]
    assert len(held_out) > 5
    assert len(lexicon.RESERVED) > 15
    text = " ".join(message.content for seed in range(200) for message in _dialogue(seed, Split.TRAIN))
    words = set(re.findall(r"\w+", text))
    assert words.isdisjoint({*held_out, *lexicon.RESERVED})


def test_every_generated_answer_passes_its_own_check() -> None:
    for seed in range(150):
        for message in _dialogue(seed, Split.TRAIN):
            if message.check is not None:
                assert message.check.accepts(_as_reply(message)), message


def test_checks_reject_the_answers_of_other_questions() -> None:
    for skill, made in cases.by_skill(seed=5, count=6).items():
        for case in made:
            for wrong in (Reply(""), Reply("No."), Reply("771, 772"), Reply("abc"), Reply('{"name": 0}')):
                assert not case.check.accepts(wrong), (skill, case)


@pytest.mark.parametrize(
    ("skill", "spoil"),
    [
        ("count", lambda text: text.rpartition(", ")[0]),
        ("add", lambda text: text + "0"),
        ("sort", lambda text: text + ", 3"),
        ("spell", lambda text: text[:-2]),
        ("reverse", lambda text: text + " x"),
        ("extract JSON", lambda text: text.replace(": ", ": 1", 1)),
        ("recall", lambda text: "I do not remember."),
        ("repeat", lambda text: text + " more"),
    ],
)
def test_checks_reject_spoiled_answers(skill: str, spoil) -> None:  # type: ignore[no-untyped-def]
    spoiled = 0
    for seed in range(400):
        for message in _dialogue(seed, Split.HELD_OUT):
            if message.skill == skill and message.check is not None:
                assert not message.check.accepts(Reply(spoil(message.content))), message
                spoiled += 1
        if spoiled >= 10:
            return
    assert spoiled, f"no dialogue shows {skill}"


def test_replies_are_taken_apart() -> None:
    reply = parse_reply('<think>I use it.</think><tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>')
    assert reply == Reply("", "I use it.", (ToolCall("f", {"a": 1}),))
    assert parse_reply("<think>never closed").malformed
    assert parse_reply("<tool_call>{not json}</tool_call>").malformed
    assert parse_reply("hm <tool_call>").malformed


def test_cases_depend_on_the_seed_alone() -> None:
    def asked(seed: int) -> list[tuple[Message, ...]]:
        return [tuple(m for m in case.messages) for made in cases.by_skill(seed, 2).values() for case in made]

    def plain(seed: int) -> list[list[tuple[str, str]]]:
        return [[(m.role, m.content) for m in messages] for messages in asked(seed)]

    assert plain(1) == plain(1)
    assert plain(1) != plain(2)
