"""What `baton up` shows: one log of all services, each line prefixed and coloured, and progress while they come up.

On a terminal the progress is a table below the log; elsewhere the services' own lines are all there is. Colours follow
NO_COLOR and FORCE_COLOR. With `json`, each line is one record with the child's name in `child`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Any

from baton.cli.up.lines import LogLine
from baton.cli.up.region import LiveRegion
from baton.cli.up.supervisor import ChildState
from baton.runtime import environ

_COLOURS = {"prefill": "36", "decode": "35", "unified": "36", "gateway": "34", "router": "33", "kv-agent": "32"}
_LEVEL_COLOURS = {"warning": "33", "error": "31", "critical": "31", "debug": "2"}
_LEVELS = ("debug", "info", "warning", "error", "critical")


class Output:
    """Shows lines and events of the supervisor. `level`: least severe level shown. `stream`: stdout by default."""

    def __init__(self, *, format: str = "console", level: str = "info", width: int = 8, stream: IO[str] | None = None):
        self._stream = sys.stdout if stream is None else stream
        self._json = format == "json"
        self._least = _LEVELS.index(level)
        self._width = width
        self._colour = environ.use_colour(self._stream) and not self._json
        self._children: Sequence[ChildState] = ()
        self._region: LiveRegion | None = None
        self._started = time.monotonic()

    def say(self, text: str, level: str = "info", **fields: Any) -> None:
        """A message of `baton up` itself."""
        record = {"event": text, "level": level, "timestamp": datetime.now(UTC).isoformat(), **fields}
        self._show("baton", "", LogLine(text, text, level, datetime.now().astimezone(), fields, record=record))

    def line(self, state: ChildState, line: LogLine) -> None:
        level = line.level or ("debug" if state.spec.quiet else "info")
        if _LEVELS.index(level if level in _LEVELS else "info") >= self._least:
            self._show(state.spec.name, state.spec.kind, line)

    def ended(self, state: ChildState, how: str, delay_s: float) -> None:
        if state.spec.quiet:  # its lines were not shown, and say why it ended
            for text in state.tail:
                self._show(state.spec.name, state.spec.kind, LogLine(text, text))
        self.say(f"{state.spec.name} {how}; starting it again in {delay_s:g} s", "warning")

    def start_progress(self, children: Sequence[ChildState]) -> None:
        """Show how the children come up until `stop_progress`."""
        self._children = children
        if self._stream.isatty() and not self._json:
            self._region = LiveRegion(self._stream)
            self.refresh()

    def refresh(self) -> None:
        """Redraw the progress; also called a few times a second, for the elapsed time."""
        if self._region is not None:
            self._region.draw(self._progress())

    def stop_progress(self) -> None:
        if self._region is not None:
            self._region.draw([])
            self._region = None

    def banner(self, text: str) -> None:
        """Text for people, without prefix; left out of the JSON log."""
        if not self._json:
            self._write(text)

    def _progress(self) -> list[str]:
        ready = sum(child.phase == "ready" for child in self._children)
        lines = [f"  {ready} of {len(self._children)} ready after {time.monotonic() - self._started:.0f} s"]
        for child in self._children:
            note = "" if child.phase == "ready" or child.spec.quiet else child.note
            lines.append(f"    {child.spec.name:<{self._width}} {child.phase:<10} {note}".rstrip())
        return lines

    def _show(self, name: str, kind: str, line: LogLine) -> None:
        if self._json:
            record = line.record or {"event": line.text, "level": "info", "timestamp": datetime.now(UTC).isoformat()}
            self._write(json.dumps({**record, "child": name}))
            return
        at = (line.at or datetime.now()).strftime("%H:%M:%S")
        prefix = self._paint(f"{at} {name:<{self._width}} |", _COLOURS.get(kind, "1"))
        level = f"{line.level}: " if line.level in ("warning", "error", "critical") else ""
        body = self._paint(f"{level}{line.summary}", _LEVEL_COLOURS.get(line.level, ""))
        self._write("\n".join([f"{prefix} {body}", *(f"{prefix}   {text}" for text in line.trace.splitlines())]))

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text

    def _write(self, text: str) -> None:
        try:
            if self._region is not None:
                self._region.print_above(text)
            else:
                print(text, file=self._stream, flush=True)
        except BrokenPipeError:  # whoever read the log has left; the services stay
            self._stream = open(os.devnull, "w")  # noqa: SIM115 - until this process ends
