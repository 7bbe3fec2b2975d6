"""Mistral: `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`; since 2025 `[TOOL_CALLS]name[ARGS]{..}` per call."""

from __future__ import annotations

from typing import ClassVar

from baton.gateway.parsers.formats import Tools, no_call
from baton.gateway.parsers.json_text import arguments, call_object
from baton.gateway.parsers.reader import Parsing, Reader
from baton.gateway.parsers.sink import Sink

_CALLS, _CALL_ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class Mistral:
    special: ClassVar[tuple[str, ...]] = (_CALLS, _CALL_ID, _ARGS)

    def __init__(self, tools: Tools) -> None:
        pass

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        while (yield from reader.until((_CALLS,), sink.content)):
            reader.record(_CALLS)
            yield from reader.space()
            if (yield from reader.peek()) == "[":
                yield from _array(reader, sink)
            else:
                yield from _named(reader, sink)
            no_call(reader, sink, reader.recorded())


def _array(reader: Reader, sink: Sink) -> Parsing[None]:
    """Calls in a JSON array. Afterwards only what was none of them is on record."""
    reader.consume(1)
    while True:
        yield from reader.space()
        if not (yield from call_object(reader, sink)):
            return
        reader.record()
        yield from reader.space()
        if (yield from reader.one_of((",", "]"))) != ",":
            reader.record()
            return


def _named(reader: Reader, sink: Sink) -> Parsing[None]:
    """One call. The id that some models write is their own invention, but their templates want it back."""
    name, marker = yield from reader.text_until((_ARGS, _CALL_ID, "{"))
    call_id = None
    if marker == _CALL_ID:
        call_id, marker = yield from reader.text_until((_ARGS, "{"))
    if marker is None or not name.strip():
        return
    if marker == "{":
        reader.put_back(marker)
    reader.record()
    sink.start_call(name.strip(), call_id.strip() if call_id else None)
    yield from arguments(reader, sink)
    sink.end_call()
    reader.record()
