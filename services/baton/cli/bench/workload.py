"""What a load test sends: conversations made from a seed, equal for equal arguments on every machine.

Prompts are token ids, so that their lengths are exact whatever the server's tokenizer is; conversations of several
turns, and everything sent to the chat endpoint, are text of short common words, about one token each (the server's own
count is what gets reported). Knows no HTTP and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from baton.core.errors import ConfigError

Content = list[int] | str
FIRST_TOKEN = 100  # below it vocabularies keep their special tokens
_WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part"
).split()


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user adds, and how many tokens the answer is to have."""

    content: Content
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that follow one another, each sent when the answer to the one before is complete.

    `system` comes before the first turn; equal ones are equal prefixes. `due_s`: when a trace says that it starts.
    """

    turns: tuple[Turn, ...]
    system: Content = ""
    due_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths in tokens; each request's own are drawn evenly from mean * (1 - spread) to mean * (1 + spread)."""

    input_tokens: int
    output_tokens: int
    spread: float = 0.0

    def check(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise ConfigError(f"lengths are {self.input_tokens} in, {self.output_tokens} out; both must be at least 1")
        if not 0.0 <= self.spread < 1.0:
            raise ConfigError(f"spread is {self.spread}; it must be in [0, 1)")


class Writer:
    """Draws contents. `text`: words instead of token ids of [FIRST_TOKEN, vocab)."""

    def __init__(self, seed: int | Sequence[int], vocab: int, *, text: bool) -> None:
        if vocab <= FIRST_TOKEN:
            raise ConfigError(f"vocab is {vocab}; it must be more than {FIRST_TOKEN}")
        self.random = np.random.default_rng(seed)
        self._vocab = vocab
        self._text = text

    def content(self, tokens: int) -> Content:
        if self._text:
            return " ".join(_WORDS[index] for index in self.random.integers(0, len(_WORDS), tokens))
        ids: list[int] = self.random.integers(FIRST_TOKEN, self._vocab, tokens).tolist()
        return ids

    def around(self, mean: int, spread: float) -> int:
        if spread == 0.0:
            return mean
        return max(1, round(mean * float(self.random.uniform(1.0 - spread, 1.0 + spread))))


def random_prompts(count: int, lengths: Lengths, writer: Writer) -> list[Conversation]:
    """`count` requests that have nothing in common."""
    return [Conversation((_turn(lengths, writer),)) for _ in range(count)]


def shared_prefix(
    count: int, lengths: Lengths, writer: Writer, *, prefix_tokens: int, share: float, groups: int = 1
) -> list[Conversation]:
    """`count` requests, of which `share` begin with one of `groups` common prefixes.

    The others are as long, but begin with a prefix of their own: so that hit and miss differ in nothing else. Who
    shares is spread evenly over the run.
    """
    if prefix_tokens < 1 or not 0.0 <= share <= 1.0 or groups < 1:
        raise ConfigError(f"prefix {prefix_tokens}, share {share}, groups {groups}: need >= 1, in [0, 1], >= 1")
    prefixes = [writer.content(prefix_tokens) for _ in range(groups)]
    found = []
    for index in range(count):
        shares = int((index + 1) * share) > int(index * share)
        system = prefixes[index % groups] if shares else writer.content(prefix_tokens)
        found.append(Conversation((_turn(lengths, writer),), system))
    return found


def multi_turn(count: int, turns: int, lengths: Lengths, writer: Writer, *, prefix_tokens: int) -> list[Conversation]:
    """About `count` requests in conversations of `turns` turns, all under one system prompt of `prefix_tokens`."""
    if turns < 1:
        raise ConfigError(f"turns is {turns}; it must be at least 1")
    system = writer.content(prefix_tokens) if prefix_tokens else ""
    return [
        Conversation(tuple(_turn(lengths, writer) for _ in range(turns)), system)
        for _ in range(max(1, round(count / turns)))
    ]


def requests_of(conversations: Iterable[Conversation]) -> int:
    return sum(len(conversation.turns) for conversation in conversations)


def _turn(lengths: Lengths, writer: Writer) -> Turn:
    input_tokens = writer.around(lengths.input_tokens, lengths.spread)
    return Turn(writer.content(input_tokens), writer.around(lengths.output_tokens, lengths.spread))
