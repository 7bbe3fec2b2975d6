"""Text that is read before it is all there.

The methods of `Reader` are generators that yield while more text is needed to decide, so that a parser is written as if
it had the whole text: `marker = yield from reader.until(...)`. What is consumed never depends on how the text was cut
into pieces: that is why results do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Parsing: TypeAlias = Generator[None, None, T]
Take: TypeAlias = Callable[[str], object]


def drop(text: str) -> None:
    """Takes text that nobody wants."""


class Reader:
    """The text that has arrived and has not been consumed. One routine reads it; `feed` and `end` come from outside."""

    def __init__(self) -> None:
        self._text = ""
        self._ended = self._cut = False
        self._record: list[str] | None = None

    def feed(self, text: str) -> None:
        self._text += text

    def end(self, *, cut_off: bool = False) -> None:
        """No more text will come. `cut_off`: more would have come, so the beginning of a marker is no text."""
        self._ended, self._cut = True, cut_off

    @property
    def cut_off(self) -> bool:
        """Whether this is the end of a text that was cut off."""
        return self._cut and not self._text

    @property
    def waiting(self) -> str:
        """What has arrived so far. Only for decisions that more text cannot change."""
        return self._text

    def consume(self, length: int) -> str:
        text, self._text = self._text[:length], self._text[length:]
        if self._record is not None:
            self._record.append(text)
        return text

    def put_back(self, text: str) -> None:
        """`text`, consumed last, comes again."""
        self._text = text + self._text
        if self._record is not None:
            self._record = ["".join(self._record).removesuffix(text)]

    def record(self, text: str = "") -> None:
        """Remember what is consumed from now on, after `text`."""
        self._record = [text]

    def recorded(self) -> str:
        """What was consumed since `record`, which ends here."""
        text = "".join(self._record or ())
        self._record = None
        return text

    def more(self) -> Parsing[bool]:
        """Wait for text beyond what is waiting. False: there is none."""
        length = len(self._text)
        while len(self._text) == length and not self._ended:
            yield
        return len(self._text) > length

    def peek(self) -> Parsing[str]:
        """The next character; empty at the end."""
        while not self._text and not self._ended:
            yield
        return self._text[:1]

    def space(self) -> Parsing[str]:
        """Consume white space; returns it."""
        found = ""
        while (yield from self.peek()).isspace():
            found += self.consume(len(self._text) - len(self._text.lstrip()))
        return found

    def one_of(self, markers: Sequence[str]) -> Parsing[str | None]:
        """Consume the marker that comes next, the longest of several. None: there is none, nothing is consumed."""
        while True:
            open_ = any(len(marker) > len(self._text) and marker.startswith(self._text) for marker in markers)
            if self._ended and self._cut and open_:
                self.consume(len(self._text))
            if not open_ or self._ended:
                break
            yield
        found = max((marker for marker in markers if self._text.startswith(marker)), key=len, default=None)
        if found is not None:
            self.consume(len(found))
        return found

    def until(self, markers: Sequence[str], take: Take) -> Parsing[str | None]:
        """Consume up to and including the first of `markers`; returns it, None when the text ends without one.

        The text before it goes to `take` piece by piece, as soon as it cannot be the beginning of a marker.
        """
        while True:
            found, marker = self._find(markers)
            possible = len(self._text) if self._ended and not self._cut else self._possible(markers)
            if marker and found < possible:
                take(self.consume(found))
                self.consume(len(marker))
                return marker
            if possible:
                take(self.consume(min(found, possible)))
            if self._ended:
                self.consume(len(self._text))
                return None
            yield

    def text_until(self, markers: Sequence[str]) -> Parsing[tuple[str, str | None]]:
        """As `until`, the text in one piece: (text, marker)."""
        pieces: list[str] = []
        marker = yield from self.until(markers, pieces.append)
        return "".join(pieces), marker

    def _find(self, markers: Sequence[str]) -> tuple[int, str]:
        """Where the first whole marker is, and which; the longest of those at one place."""
        found = [(at, -len(marker), marker) for marker in markers if (at := self._text.find(marker)) >= 0]
        if not found:
            return len(self._text), ""
        at, _, marker = min(found)
        return at, marker

    def _possible(self, markers: Sequence[str]) -> int:
        """Where the last characters may be the beginning of a marker; the length of the text if they cannot."""
        text = self._text
        longest = 0
        for marker in markers:
            for length in range(min(len(marker) - 1, len(text)), longest, -1):
                if text.endswith(marker[:length]):
                    longest = length
                    break
        return len(text) - longest
