"""Harmony, the format of GPT-OSS: messages on channels, calls as messages to a recipient.

Written after OpenAI's description of the format. The openai-harmony package reads token ids of its own vocabulary,
which it downloads; here the text is read, as for every other format.
"""

from __future__ import annotations

import re
from typing import ClassVar

from baton.gateway.parsers.formats import Tools
from baton.gateway.parsers.json_text import arguments
from baton.gateway.parsers.reader import Parsing, Reader, drop
from baton.gateway.parsers.sink import Sink

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")
_ON_CHANNEL = re.compile(re.escape(_CHANNEL) + r"\s*(\w+)")


class Harmony:
    """Reads reasoning and calls alike. `analysis` is reasoning; `final`, and `commentary` to nobody, are content."""

    special: ClassVar[tuple[str, ...]] = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS)

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        yield from reader.space()
        if not (yield from _header_follows(reader)):
            yield from reader.until((_START,), sink.content)
        while (yield from reader.peek()):
            header, marker = yield from reader.text_until((_MESSAGE, *_ENDS))
            if marker is None:
                return  # cut off before it said anything
            if marker == _MESSAGE:
                yield from self._message(header, reader, sink)
            yield from reader.until((_START,), drop)

    def _message(self, header: str, reader: Reader, sink: Sink) -> Parsing[None]:
        ends = (*_ENDS, _START)
        name = self._called(header)
        channel = _ON_CHANNEL.search(header)
        if name is not None:
            sink.start_call(name)
            yield from arguments(reader, sink)
            end = yield from reader.until(ends, drop)
            sink.end_call()
        elif channel is not None and channel[1] == "analysis":
            sink.reasoning("")
            end = yield from reader.until(ends, sink.reasoning)
        else:
            end = yield from reader.until(ends, sink.content)
        if end == _START:
            reader.put_back(_START)

    def _called(self, header: str) -> str | None:
        match = _RECIPIENT.search(header)
        if match is None or not self._tools:
            return None
        name = match[1].removeprefix("functions.")
        return name if name != match[1] or name in self._tools else None


def _header_follows(reader: Reader) -> Parsing[bool]:
    """Whether the text goes on with a message's header, as it should; else the model wrote plain text."""
    for opening in ("to=", _START, _CHANNEL, _MESSAGE, _CONSTRAIN):
        if (yield from reader.one_of((opening,))):
            if opening != _START:
                reader.put_back(opening)
            return True
    return False
