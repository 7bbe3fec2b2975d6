"""GLM 4.5 and later: `<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value>..</tool_call>`."""

from __future__ import annotations

from typing import ClassVar

from baton.gateway.parsers.formats import Tools, no_call
from baton.gateway.parsers.reader import Parsing, Reader, drop
from baton.gateway.parsers.sink import Sink
from baton.gateway.parsers.typed_arguments import TypedArguments

_CALL, _END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class Glm:
    """String arguments stand in the text as they are, all others as JSON."""

    special: ClassVar[tuple[str, ...]] = (_CALL, _END, _KEY, _KEY_END, _VALUE, _VALUE_END)

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        while (marker := (yield from reader.until((_CALL, _END), sink.content))) is not None:
            if marker == _CALL:
                yield from self._call(reader, sink)

    def _call(self, reader: Reader, sink: Sink) -> Parsing[None]:
        text, marker = yield from reader.text_until((_KEY, _END))
        name = text.strip()
        if marker is None or not name:
            no_call(reader, sink, _CALL + text + (marker or ""))
            return
        sink.start_call(name)
        arguments = TypedArguments(sink, self._tools.get(name))
        while marker == _KEY:
            key, _ = yield from reader.text_until((_KEY_END,))
            if (yield from reader.until((_VALUE,), drop)) is None:
                break
            if (yield from arguments.argument(reader, key.strip(), (_VALUE_END,))) is None:
                break
            marker = yield from reader.until((_KEY, _END), drop)
        if marker == _END:
            arguments.close()
        sink.end_call()
