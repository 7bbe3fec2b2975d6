"""Stop strings: where a streamed text ends, without ever showing a part of the string that ended it.

Sits between detokenizer and client. Knows characters only, no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matched:
    """`text` may be shown now; `stop` is the string that ended the text, or None."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Finds the first of several stop strings in a text that comes in pieces.

    The text ends before the stop string whose last character comes first, the longest of them where several end
    together; so the result does not depend on how the text was cut into pieces. What may still become a stop string
    is held back. Every character is looked at once per stop string (Knuth, Morris and Pratt, 1977), however long the
    strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop string that the text now ends with
        self._held = ""

    def push(self, piece: str) -> Matched:
        """Take the next piece of text. After a match nothing more may be pushed."""
        for position, character in enumerate(piece):
            stop = self._advance(character)
            if stop is not None:
                text = self._held + piece[: position + 1]
                return Matched(text[: len(text) - len(stop)], stop)
        text = self._held + piece
        shown = len(text) - max(self._matched, default=0)
        self._held = text[shown:]
        return Matched(text[:shown])

    def flush(self) -> str:
        """The text is complete: what was held back is text after all."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        for index, stop in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = self._borders[index][matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                return stop
            self._matched[index] = matched
        return None


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    length = 0
    for position in range(1, len(text)):
        while length and text[position] != text[length]:
            length = borders[length - 1]
        if text[position] == text[length]:
            length += 1
        borders[position] = length
    return borders
