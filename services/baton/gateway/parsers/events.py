"""What an assistant's message is made of, in the order in which it becomes known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Content:
    """More of the text that is meant for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the text in which the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins. `index` counts the calls of one message; they do not overlap."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of call `index`'s arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Call `index` is over. Its arguments are a JSON object, unless the model wrote none or was cut off."""

    index: int


Event: TypeAlias = Content | Reasoning | CallStart | CallArguments | CallEnd
