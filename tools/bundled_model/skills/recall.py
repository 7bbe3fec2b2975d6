"""Recall: say again what was told, from the same message, from earlier turns or from the system message."""

from __future__ import annotations

from tools.bundled_model.conversation import Mentions, Message
from tools.bundled_model.scene import Fact, Scene
from tools.bundled_model.skills import facts, filler

SENTENCE_TOKENS = 12  # mean length of a told fact or of a filler sentence
_ASKING_TOKENS = 28  # mean length of a question and its answer

_REMEMBER = ("", "", "Remember this: ", "Please remember: ", "Listen: ", "Here are some facts. ", "Read this text. ")
_NOW = ("", "", "Now tell me: ", "Question: ", "Now answer. ")
_OKAY = "Okay, I will remember that."


def passage(scene: Scene) -> list[Message]:
    """A text with facts and filler, one question in the same message and more of them in the next ones."""
    sentences = max(1, min(scene.room, scene.rng.randint(40, max(41, scene.room))) * 2 // 3 // SENTENCE_TOKENS)
    told = max(1, round(sentences * scene.rng.choice((0.3, 0.6, 1.0))))
    text, drawn = _told_text(scene, told, sentences - told)
    asked = scene.rng.choice(drawn)
    first = f"{scene.rng.choice(_REMEMBER)}{text} {scene.rng.choice(_NOW)}{scene.rng.choice(asked.asks)}"
    messages = _reply(scene, asked, first)
    spare = (scene.room - SENTENCE_TOKENS * sentences) // _ASKING_TOKENS - 1
    for _ in range(max(0, min(spare, told))):
        messages += ask(scene)
    return messages


def tell(scene: Scene) -> list[Message]:
    """The user tells one or more facts; questions come in later episodes."""
    text, _ = _told_text(scene, scene.rng.choice((1, 1, 2, 3)), 0)
    prefix = scene.rng.choice(_REMEMBER[2:5])
    return [Message("user", prefix + text), Message("assistant", _OKAY, skill="tell", check=Mentions("remember"))]


def ask(scene: Scene) -> list[Message]:
    """A question for a fact of the conversation; now and then for one that nobody told."""
    if not scene.facts or scene.rng.random() < 0.2:
        return ask_untold(scene)
    return ask_told(scene)


def ask_told(scene: Scene) -> list[Message]:
    fact = scene.rng.choice(list(scene.facts.values()))
    return _reply(scene, fact, scene.careless(scene.rng.choice(fact.asks)))


def at_distance(scene: Scene, sentences: int) -> list[Message]:
    """One fact, `sentences` sentences of filler and other facts, one question: for evaluation."""
    fact = facts.draw(scene)
    facts.remember(scene, fact)
    others = sum(scene.rng.random() < 0.15 for _ in range(sentences))
    between, _ = _told_text(scene, others, sentences - others)
    return _reply(scene, fact, " ".join(filter(None, (fact.tells[0], between, fact.asks[0]))))


def system_facts(scene: Scene) -> str:
    """Facts for a system message; they count as told."""
    text, _ = _told_text(scene, scene.rng.randint(1, 4), 0)
    return scene.rng.choice(("Facts: ", "You know these facts: ", "Remember: ")) + text


def _told_text(scene: Scene, told: int, others: int) -> tuple[str, list[Fact]]:
    drawn: list[Fact] = []
    for _ in range(told):
        fact = facts.draw(scene)
        facts.remember(scene, fact)
        drawn.append(fact)
    sentences = [scene.rng.choice(fact.tells) for fact in drawn] + [filler.sentence(scene) for _ in range(others)]
    scene.rng.shuffle(sentences)
    return " ".join(sentences), drawn


def _reply(scene: Scene, fact: Fact, question: str) -> list[Message]:
    others = [other.value for other in scene.facts.values() if other.value.isdigit() and other.value != fact.value]
    check = Mentions(fact.value, wrong=others)
    return scene.exchange("recall", question, fact.answer, check, f"I was told: {fact.tells[0]}")


def ask_untold(scene: Scene) -> list[Message]:
    fact = facts.draw(scene)
    question = scene.careless(scene.rng.choice(fact.asks))
    return scene.exchange("not told", question, fact.unknown, Mentions("not"), "I was not told that.")
