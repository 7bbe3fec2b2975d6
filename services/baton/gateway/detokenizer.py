"""Token ids to text, piece by piece, with characters that span tokens kept whole.

The pieces of a request, joined, equal the tokenizer's own decoding of all its tokens at once. Each token costs constant
time, whatever the request's length. Two ways:

- `ByteDetokenizer` for vocabularies whose tokens are byte strings (byte-level BPE; SentencePiece with or without byte
  fallback): the bytes go through an incremental UTF-8 decoder. Bytes that cannot become a character are shown as
  U+FFFD as soon as that is certain, an unfinished character at the end when the text ends.
- `WindowDetokenizer` for any other: it decodes a short window of tokens before and after the new one, and takes the
  difference.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
_WINDOW_TOKENS = 6  # context that decides about spaces and clean-up at the boundary
_MAX_HELD_TOKENS = 12  # longer than any character: what is still undecodable then is not text


class Detokenizer(Protocol):
    """Text of one sequence. Used from one task; holds no reference to the request."""

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; may be empty."""

    def flush(self) -> str:
        """The sequence is over: text that was held back as an unfinished character."""


class ByteDetokenizer:
    """`token_bytes(id)`: bytes of a token, none if it is not shown. `strip_spaces`: leading ones that are dropped."""

    def __init__(self, token_bytes: Callable[[int], bytes], strip_spaces: int = 0) -> None:
        self._token_bytes = token_bytes
        self._strip_spaces = strip_spaces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        text = self._decoder.decode(self._token_bytes(token_id))
        return self._strip(text) if self._strip_spaces and text else text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _strip(self, text: str) -> str:
        stripped = text.lstrip(" ")
        dropped = min(len(text) - len(stripped), self._strip_spaces)
        self._strip_spaces = 0 if dropped < len(text) else self._strip_spaces - dropped
        return text[dropped:]


class WindowDetokenizer:
    """`decode` is the tokenizer's own; `context`: the tokens before the text, which decide about its first space."""

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(context[-_WINDOW_TOKENS:])
        self._shown = len(self._tokens)  # tokens of the window whose text has been given out
        self._shown_text = decode(self._tokens)

    def push(self, token_id: int) -> str:
        self._tokens.append(token_id)
        text = self._decode(self._tokens)
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._shown < _MAX_HELD_TOKENS:
            return ""
        return self._take(text)

    def flush(self) -> str:
        return self._take(self._decode(self._tokens)) if self._shown < len(self._tokens) else ""

    def _take(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        if len(self._tokens) > 2 * _WINDOW_TOKENS:
            del self._tokens[:-_WINDOW_TOKENS]
            text = self._decode(self._tokens)
        self._shown, self._shown_text = len(self._tokens), text
        return piece


class MarkedDetokenizer:
    """Shows some tokens by their names, between pieces of `inner`'s text. `markers`: token id -> name."""

    def __init__(self, inner: Detokenizer, markers: Mapping[int, str]) -> None:
        self._inner = inner
        self._markers = markers

    def push(self, token_id: int) -> str:
        marker = self._markers.get(token_id)
        return self._inner.push(token_id) if marker is None else self._inner.flush() + marker

    def flush(self) -> str:
        return self._inner.flush()
