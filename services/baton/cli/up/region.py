"""Lines at the bottom of a terminal that are redrawn in place while a log scrolls above them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import IO

_TO_LINE_START_AND_ERASE_BELOW = "\r\x1b[J"


class LiveRegion:
    """Owns the last lines of `stream`, a terminal. Everything else must be written by `print_above`."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: list[str] = []

    def draw(self, lines: Sequence[str]) -> None:
        """Show `lines` (plain text) in the place of those shown before. They are cut to the size of the terminal."""
        size = shutil.get_terminal_size()
        cut = [line[: size.columns - 1] for line in lines[: size.lines - 1]]
        if cut != self._lines:
            erase = self._erase()
            self._lines = cut
            self._write(erase + self._text())

    def print_above(self, text: str) -> None:
        self._write(f"{self._erase()}{text}\n{self._text()}")

    def _text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def _erase(self) -> str:
        up = f"\x1b[{len(self._lines)}A" if self._lines else ""
        return up + _TO_LINE_START_AND_ERASE_BELOW

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
