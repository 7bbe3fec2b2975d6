"""Tool calls that were demanded: the output is nothing but them, in JSON that a grammar has enforced."""

from __future__ import annotations

from typing import ClassVar

from baton.gateway.parsers.json_text import arguments, call_object
from baton.gateway.parsers.reader import Parsing, Reader, drop
from baton.gateway.parsers.sink import Sink


class NamedCall:
    """All of the text is the arguments of a call of `name`."""

    special: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str) -> None:
        self._name = name

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        if not (yield from reader.peek()):
            return
        sink.start_call(self._name)
        yield from arguments(reader, sink)
        sink.end_call()
        yield from reader.until((), drop)


class AnyCalls:
    """`[{"name": .., "arguments": {..}}, ..]`."""

    special: ClassVar[tuple[str, ...]] = ()

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        yield from reader.space()
        while (yield from reader.one_of(("[", ","))) is not None:
            yield from reader.space()
            yield from call_object(reader, sink)
            yield from reader.space()
        yield from reader.until((), drop)
