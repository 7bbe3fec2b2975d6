"""Words as material: repeat, spell, reverse."""

from __future__ import annotations

from tools.bundled_model.conversation import Letters, Message, Says
from tools.bundled_model.scene import Scene

_REPEAT = (
    "Repeat after me: {text}",
    "Repeat this: {text}",
    "Say this: {text}",
    "Please repeat: {text}",
    "Say {text}",
    "Repeat {text}",
)
_SPELL = (
    "Spell the word {word}.",
    "How do you spell {word}?",
    "Spell {word}.",
    "Please spell the word {word}.",
    "Can you spell {word}?",
)
_REVERSE = (
    "Reverse the word {word}.",
    "Spell {word} backwards.",
    "Write the word {word} backwards.",
    "Reverse the letters of {word}.",
    "Reverse {word}.",
)
_REVERSE_ORDER = (
    "Reverse the order of these words: {text}",
    "Say these words in reverse order: {text}",
    "Reverse this list: {text}",
)


_WORD_TOKENS = 3  # mean, numbers included


def repeat(scene: Scene) -> list[Message]:
    return _repeat(scene, scene.rng.randint(1, 6))


def repeat_long(scene: Scene) -> list[Message]:
    """As long a text as there is room for it twice."""
    return _repeat(scene, max(3, min(40, (scene.room - 10) // (2 * _WORD_TOKENS))))


def _repeat(scene: Scene, count: int) -> list[Message]:
    pieces = []
    for _ in range(count):
        pieces.append(_material(scene))
    text = " ".join(pieces)
    return scene.exchange("repeat", scene.phrase(_REPEAT, text=text), text, Says([text]), "I repeat the same words.")


def _material(scene: Scene) -> str:
    """A word, a number or a name."""
    drawn = scene.rng.random()
    if drawn < 0.15:
        return scene.words.digits(scene.rng, 1, 5)
    return scene.words.first_name(scene.rng) if drawn < 0.25 else scene.words.any_word(scene.rng)


def spell(scene: Scene) -> list[Message]:
    word = scene.words.any_word(scene.rng)
    question = scene.phrase(_SPELL, word=word)
    return scene.exchange("spell", question, "-".join(word), Letters(word), f"I say the letters of {word}.")


def reverse(scene: Scene) -> list[Message]:
    if scene.rng.random() < 0.25:
        return _reverse_order(scene)
    word = scene.words.any_word(scene.rng)
    question = scene.phrase(_REVERSE, word=word)
    answer = f"{'-'.join(word)} backwards: {'-'.join(reversed(word))}"
    return scene.exchange("reverse", question, answer, Letters(word[::-1]), f"I spell {word} and then go back.")


def _reverse_order(scene: Scene) -> list[Message]:
    words = [scene.words.any_word(scene.rng) for _ in range(scene.rng.randint(2, 6))]
    question, answer = scene.phrase(_REVERSE_ORDER, text=" ".join(words)), " ".join(reversed(words))
    return scene.exchange("reverse", question, answer, Says([answer]), "I start with the last word.")
