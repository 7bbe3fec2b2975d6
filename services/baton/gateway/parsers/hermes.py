"""`<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes 2 and 3, Qwen2.5, Qwen3, baton-tiny."""

from __future__ import annotations

from typing import ClassVar

from baton.gateway.parsers.formats import Tools, no_call
from baton.gateway.parsers.json_text import call_object
from baton.gateway.parsers.reader import Parsing, Reader
from baton.gateway.parsers.sink import Sink

_BEGIN, _END = "<tool_call>", "</tool_call>"


class Hermes:
    """A block that holds no call is content, tags and all."""

    special: ClassVar[tuple[str, ...]] = (_BEGIN, _END)

    def __init__(self, tools: Tools) -> None:
        pass

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        in_text = False  # whether the block that is open holds no call
        while (marker := (yield from reader.until((_BEGIN, _END), sink.content))) is not None:
            if marker == _END:
                if in_text:
                    sink.content(_END)
                in_text = False
                continue
            reader.record(_BEGIN)
            yield from reader.space()
            is_call = yield from call_object(reader, sink)
            text = reader.recorded()
            in_text = not is_call
            if is_call:
                yield from _skip_to_end(reader)
            else:
                no_call(reader, sink, text)


def _skip_to_end(reader: Reader) -> Parsing[None]:
    """Consume the closing tag, and the braces that models write too many of before it."""
    while (yield from reader.peek()) and (reader.waiting[0] in "}]" or reader.waiting[0].isspace()):
        reader.consume(1)
    yield from reader.one_of((_END,))
