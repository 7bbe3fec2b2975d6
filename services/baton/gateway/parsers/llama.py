"""`{"name": .., "parameters": {..}}` of Llama 3.1 to 3.3: several with semicolons, maybe after `<|python_tag|>`."""

from __future__ import annotations

from typing import ClassVar

from baton.gateway.parsers.formats import Tools
from baton.gateway.parsers.json_text import call_object
from baton.gateway.parsers.reader import Parsing, Reader
from baton.gateway.parsers.sink import Sink

_TAG = "<|python_tag|>"


class LlamaJson:
    """Calls have no marker of their own: an object is one only where the message begins with it, and if it names one of
    the request's tools. Any other text is content."""

    special: ClassVar[tuple[str, ...]] = (_TAG,)

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        yield from self._calls(reader, sink)
        while (yield from reader.until((_TAG,), sink.content)):
            yield from self._calls(reader, sink)

    def _calls(self, reader: Reader, sink: Sink) -> Parsing[None]:
        """Calls, if the text goes on with one; what is none is content."""
        while True:
            reader.record()
            yield from reader.space()
            yield from reader.one_of((_TAG,))
            yield from reader.space()
            is_call = yield from call_object(reader, sink, self._tools)
            text = reader.recorded()
            if not is_call:
                sink.content(text.replace(_TAG, ""))
                return
            yield from reader.space()
            if (yield from reader.one_of((";",))) is None:
                return
