"""`<｜tool▁call▁begin｜>` of DeepSeek: V3 and R1 (`function<sep>name`, arguments fenced), V3.1 (`name<sep>{..}`)."""

from __future__ import annotations

from typing import ClassVar

from baton.gateway.parsers.formats import Tools, no_call
from baton.gateway.parsers.json_text import arguments
from baton.gateway.parsers.reader import Parsing, Reader, drop
from baton.gateway.parsers.sink import Sink

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_MARKERS = (_CALLS, _CALL, _SEPARATOR, _CALL_END, _CALLS_END)


class DeepSeek:
    special: ClassVar[tuple[str, ...]] = _MARKERS

    def __init__(self, tools: Tools) -> None:
        pass

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        marker: str | None = ""
        while marker is not None:
            take = drop if marker == _CALL else sink.content  # a fence may close after the arguments
            marker = yield from reader.until(_MARKERS, take)
            if marker == _CALL:
                yield from _call(reader, sink)


def _call(reader: Reader, sink: Sink) -> Parsing[None]:
    reader.record(_CALL)
    name, marker = yield from reader.text_until((_SEPARATOR, _CALL_END))
    yield from reader.space()
    if marker == _SEPARATOR and (yield from reader.peek()) != "{":  # what came before was the kind of tool
        name, marker = yield from reader.text_until(("\n", "{", _CALL_END))
        if marker == "\n":
            marker = yield from reader.until(("{", _CALL_END), drop)  # the fence opens
        if marker == "{":
            reader.put_back("{")
    text = reader.recorded()
    if marker is None or not name.strip():
        no_call(reader, sink, text)
        return
    sink.start_call(name.strip())
    if marker == _CALL_END:
        reader.put_back(_CALL_END)
        sink.arguments("{}")
    else:
        yield from arguments(reader, sink)
    sink.end_call()
