"""Reasoning between two tags at the beginning of a message.

The opening tag may be written by the model, or stand at the end of the prompt already (DeepSeek R1, Qwen3-Thinking and
others put it into their chat templates); some models also leave it out.
"""

from __future__ import annotations

from typing import ClassVar

from baton.gateway.parsers.reader import Parsing, Reader
from baton.gateway.parsers.sink import Sink


class Tagged:
    """`prompt`: the text that the message continues. It says whether the message begins inside the reasoning."""

    opening: ClassVar[str]
    closing: ClassVar[str]
    special: ClassVar[tuple[str, ...]]
    implicit: ClassVar[bool] = False  # the message begins inside unless the prompt has closed the reasoning
    ends_before: ClassVar[tuple[str, ...]] = ()  # markers that end the reasoning where the closing tag is left out

    def __init__(self, prompt: str = "") -> None:
        tail = prompt[-200:].rstrip()
        self._inside = tail.endswith(self.opening) or (self.implicit and not tail.endswith(self.closing))

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        space = yield from reader.space()
        opened = yield from reader.one_of((self.opening,))
        if not opened and not self._inside:
            if space:
                sink.content(space)
            return
        sink.reasoning("")
        marker = yield from reader.until((self.closing, *self.ends_before), sink.reasoning)
        if marker in self.ends_before:
            reader.put_back(marker)


class Think(Tagged):
    """`<think>..</think>`: Qwen3, DeepSeek, GLM, Kimi, MiniMax, baton-tiny and many more."""

    opening, closing = "<think>", "</think>"
    special: ClassVar[tuple[str, ...]] = (opening, closing)
    ends_before = ("<|tool_calls_section_begin|>",)


class ImplicitThink(Think):
    """The same for models that may begin to think without the opening tag."""

    implicit = True


class SeedThink(Tagged):
    """Seed-OSS."""

    opening, closing = "<seed:think>", "</seed:think>"
    special: ClassVar[tuple[str, ...]] = (opening, closing)


class MistralThink(Tagged):
    """Magistral and Ministral."""

    opening, closing = "[THINK]", "[/THINK]"
    special: ClassVar[tuple[str, ...]] = (opening, closing)


class GemmaThink(Tagged):
    """Gemma 4: a channel named `thought`."""

    opening, closing = "<|channel>thought", "<channel|>"
    special: ClassVar[tuple[str, ...]] = ("<|channel>", closing)
