"""Messages to token ids, with the stretches where the assistant speaks.

Training may cut words: see `Cuts`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tools.bundled_model.conversation import Message
from tools.bundled_model.template import CONTROL_MARKERS, END, PAD, ROLE_MARKERS, TEXT_MARKERS, pieces


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant message: its tokens are `start:end`, without the role marker, with the end marker."""

    skill: str
    start: int
    end: int


@dataclass(slots=True)
class Encoded:
    """Token ids of a conversation, and where its assistant speaks."""

    ids: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def extend(self, other: Encoded) -> None:
        shift = len(self.ids)
        self.ids += other.ids
        self.turns += [Turn(turn.skill, turn.start + shift, turn.end + shift) for turn in other.turns]


_CUT_WORD = re.compile(r"[A-Za-z]{4,}")


class Cuts:
    """Words that a conversation writes in two parts, tokens of their own each: a share of those that users and tools
    say, every one cut at the same random place wherever it stands in the conversation.

    Byte-pair merges leave tokens that common words pass through ("amp" on the way to "lamp") and that training text
    never shows; an unseen word is written in them. Cut words show them, as something to copy and to spell. The idea is
    BPE-dropout's (Provilkov et al. 2020), made consistent in a conversation so that an answer can know it.
    """

    def __init__(self, rng: random.Random, share: float) -> None:
        self._rng, self._share = rng, share
        self._places: dict[str, int] = {}

    def parts(self, text: str, *, new: bool) -> Iterator[str]:
        """`text` in parts that are to be encoded one by one; words met for the first time are cut only if `new`."""
        start = 0
        for match in _CUT_WORD.finditer(text):
            word = match[0].lower()
            if new and word not in self._places:
                cut = self._rng.random() < self._share
                self._places[word] = self._rng.randrange(1, len(word)) if cut else 0
            if place := self._places.get(word, 0):
                yield text[start : match.start() + place]
                start = match.start() + place
        yield text[start:]


class ChatEncoder:
    """Messages to token ids, in the chat format. Holds no state between calls."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._markers = {text: vocabulary[text] for text in (*CONTROL_MARKERS, *TEXT_MARKERS)}
        self.pad_id, self.end_id = self._markers[PAD], self._markers[END]
        self.assistant_id = self._markers[ROLE_MARKERS["assistant"]]
        self.vocab_size = len(vocabulary)

    @classmethod
    def load(cls, folder: Path) -> ChatEncoder:
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def encode(
        self, messages: Sequence[Message], tools: tuple[Mapping[str, Any], ...] = (), cuts: Cuts | None = None
    ) -> Encoded:
        """Ids of `messages` as they stand in a conversation; `tools` only with its opening message."""
        encoded = Encoded()
        for index, message in enumerate(messages):
            start = len(encoded.ids) + 1
            for piece in pieces(message, tools if index == 0 else ()):
                if piece.marker:
                    encoded.ids.append(self._markers[piece.text])
                    continue
                parts = cuts.parts(piece.text, new=message.role != "assistant") if cuts else (piece.text,)
                for part in parts:
                    encoded.ids += self._text_ids(part)
            if message.role == "assistant":
                encoded.turns.append(Turn(message.skill, start, len(encoded.ids)))
        return encoded

    def prompt(self, messages: Sequence[Message], tools: tuple[Mapping[str, Any], ...] = ()) -> list[int]:
        """Ids of a conversation up to where the assistant is to speak."""
        return [*self.encode(messages, tools).ids, self.assistant_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, reasoning and tool-call markers included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _text_ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids) if text else []
