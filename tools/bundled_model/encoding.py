"""Messages to token ids, with the stretches where the assistant speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def encode(self, messages: Sequence[Message], tools: tuple[Mapping[str, Any], ...] = ()) -> Encoded:
        """Ids of `messages` as they stand in a conversation; `tools` only with its opening message."""
        encoded = Encoded()
        for index, message in enumerate(messages):
            start = len(encoded.ids) + 1
            for piece in pieces(message, tools if index == 0 else ()):
                encoded.ids += [self._markers[piece.text]] if piece.marker else self._text_ids(piece.text)
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
