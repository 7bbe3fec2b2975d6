"""Gemma 4 (`<|tool_call>call:name{key:<|"|>text<|"|>,n:3}<tool_call|>`) and FunctionGemma, with other markers."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from baton.gateway.parsers.formats import Tools, no_call
from baton.gateway.parsers.reader import Parsing, Reader
from baton.gateway.parsers.sink import Sink

_HEAD = re.compile(r"\s*call:([\w.-]+)\s*(?=\{)")
_KEY = re.compile(r"\s*([^\s:,{}\[\]]+)\s*:")
_WORD = re.compile(r"[^,{}\[\]]*")
_NAMES = {"true": True, "false": False, "null": None, "None": None}
_DEEPEST = 64


class Gemma:
    """A call is said when it is whole; a block that holds none is content."""

    begin: ClassVar[str] = "<|tool_call>"
    end: ClassVar[str] = "<tool_call|>"
    quote: ClassVar[str] = '<|"|>'
    special: ClassVar[tuple[str, ...]] = (begin, end, quote)

    def __init__(self, tools: Tools) -> None:
        pass

    def parse(self, reader: Reader, sink: Sink) -> Parsing[None]:
        while (yield from reader.until((self.begin,), sink.content)):
            text, marker = yield from reader.text_until((self.end,))
            while marker is not None and text.count(self.quote) % 2:  # the end marker inside a string
                rest, marker_after = yield from reader.text_until((self.end,))
                text, marker = text + marker + rest, marker_after
            call = _call(text, self.quote) if marker is not None else None
            if call is None:
                no_call(reader, sink, self.begin + text + (marker or ""))
                continue
            name, arguments = call
            sink.start_call(name)
            sink.arguments(arguments)
            sink.end_call()


class FunctionGemma(Gemma):
    begin, end, quote = "<start_function_call>", "<end_function_call>", "<escape>"
    special: ClassVar[tuple[str, ...]] = (begin, end, quote)


def _call(text: str, quote: str) -> tuple[str, str] | None:
    """(name, arguments as JSON text); None when `text` is no call."""
    head = _HEAD.match(text)
    if head is None:
        return None
    try:
        value, at = _Values(text, quote).value(head.end(), 0)
        arguments = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return None
    return None if text[at:].strip() else (head[1], arguments)


class _Values:
    """Reads values; methods take and return positions, and raise ValueError where there is none."""

    def __init__(self, text: str, quote: str) -> None:
        self._text = text
        self._quote = quote

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        at = self._space(at)
        if self._text.startswith(self._quote, at):
            return self._string(at)
        if self._text.startswith("{", at):
            return self._object(at + 1, depth)
        if self._text.startswith("[", at):
            return self._array(at + 1, depth)
        match = _WORD.match(self._text, at)
        word = match[0].strip() if match else ""
        return _word(word), match.end() if match else at

    def _string(self, at: int) -> tuple[str, int]:
        begin = at + len(self._quote)
        end = self._text.index(self._quote, begin)
        return self._text[begin:end], end + len(self._quote)

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while not self._text.startswith("}", at := self._space(at)):
            key, at = self._key(at)
            found[key], at = self.value(at, depth + 1)
            at = self._separator(at, "}")
        return found, at + 1

    def _array(self, at: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while not self._text.startswith("]", at := self._space(at)):
            item, at = self.value(at, depth + 1)
            found.append(item)
            at = self._separator(at, "]")
        return found, at + 1

    def _key(self, at: int) -> tuple[str, int]:
        if self._text.startswith(self._quote, at):
            key, at = self._string(at)
            at = self._space(at)
            if not self._text.startswith(":", at):
                raise ValueError("a key without a value")
            return key, at + 1
        match = _KEY.match(self._text, at)
        if match is None:
            raise ValueError("no key")
        return match[1], match.end()

    def _separator(self, at: int, closer: str) -> int:
        at = self._space(at)
        if self._text.startswith(",", at):
            return at + 1
        if not self._text.startswith(closer, at):
            raise ValueError("neither a comma nor the end")
        return at

    def _space(self, at: int) -> int:
        while at < len(self._text) and self._text[at].isspace():
            at += 1
        return at


def _word(word: str) -> Any:
    if not word:
        raise ValueError("no value")
    if word in _NAMES:
        return _NAMES[word]
    try:
        value = json.loads(word, parse_constant=str)
    except ValueError:
        return word  # a string without its quotes
    return value
