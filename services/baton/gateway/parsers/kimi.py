"""Kimi K2: `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{..}<|tool_call_end|>` in a section."""

from __future__ import annotations

import re
from typing import ClassVar

from baton.gateway.parsers.formats import Tools, no_call
from baton.gateway.parsers.json_text import arguments
from baton.gateway.parsers.reader import Parsing, Reader, drop
from baton.gateway.parsers.sink import Sink

_SECTION, _SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_MARKERS = (_SECTION, _CALL, _ARGUMENTS, _CALL_END, _SECTION_END)
_ID = re.compile(r"(?:functions\.)?(?P<name>.+?)(?::\d+)?", re.DOTALL)


class Kimi:
    """The model numbers its calls itself: its ids are handed on, since it wants to see them again."""

    special: ClassVar[tuple[str, ...]] = _MARKERS

    def __init__(self, tools: Tools) -> None:
        pass

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        while (marker := (yield from reader.until(_MARKERS, sink.content))) is not None:
            if marker == _CALL:
                yield from _call(reader, sink)


def _call(reader: Reader, sink: Sink) -> Parsing[None]:
    text, marker = yield from reader.text_until((_ARGUMENTS, _CALL_END))
    call_id = text.strip()
    match = _ID.fullmatch(call_id)
    if marker != _ARGUMENTS or match is None:
        no_call(reader, sink, _CALL + text + (marker or ""))
        return
    sink.start_call(match["name"], call_id)
    yield from arguments(reader, sink)
    yield from reader.until((_CALL_END,), drop)
    sink.end_call()
