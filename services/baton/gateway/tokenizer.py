"""The checkpoint's tokenizer: text to ids, ids to text and bytes. Knows no requests and no chat templates."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from baton.core.errors import CheckpointError
from baton.gateway.detokenizer import ByteDetokenizer, Detokenizer, MarkedDetokenizer, WindowDetokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPIECE_SPACE = "\u2581"


class Tokenizer:
    """A Hugging Face fast tokenizer (`tokenizer.json`). Safe to use from any thread."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._scheme = _scheme_of(inner)
        self._special = {id: token.content for id, token in inner.get_added_tokens_decoder().items() if token.special}
        self._bytes: dict[int, bytes] = {}
        self.size = inner.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` of a checkpoint. Raises CheckpointError when it is missing or unusable."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: the gateway needs the fast tokenizer of the checkpoint "
                "(AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers makes one)"
            )
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except CheckpointError:
            raise
        except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
            raise CheckpointError(f"{path} is not a usable tokenizer: {error}") from error

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Ids of each text. `add_special_tokens`: with those that the tokenizer puts around a text, such as BOS.

        Takes about half a second per million characters, in which other threads run: only the batch call of the
        library lets them.
        """
        encode = self._inner.encode_batch_fast
        return [encode([text], add_special_tokens=add_special_tokens)[0].ids for text in texts]

    def encode_texts(self, texts: Sequence[str], most: int | None) -> tuple[list[int], int]:
        """One text, or a pair of them, as the tokenizer puts special tokens around them, and where it marks the second
        to begin (0: it does not). With more than `most` tokens the longer text loses its end, as in `transformers`.
        """
        parts = [self._inner.encode_batch([text], add_special_tokens=False)[0] for text in texts]
        if most is not None:
            own = self._inner.num_special_tokens_to_add(len(texts) == 2)
            for part, length in zip(parts, _cut([len(part.ids) for part in parts], most - own), strict=True):
                part.truncate(length)
        whole = self._inner.post_process(parts[0], parts[1] if len(parts) == 2 else None, True)
        return whole.ids, whole.type_ids.index(1) if 1 in whole.type_ids else 0

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it; None when there is none."""
        found: int | None = self._inner.token_to_id(token)
        return found

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self._inner.decode(list(token_ids), skip_special_tokens=True)

    def detokenizer(self, context: Sequence[int] = (), shown: Collection[str] = ()) -> Detokenizer:
        """For one sequence. `context`: the tokens whose text it continues; none = a text of its own, which loses the
        space that the tokenizer had put before its first word. `shown`: special tokens that the text shows."""
        detokenizer: Detokenizer
        if self._scheme is None:
            detokenizer = WindowDetokenizer(self.decode, context)
        else:
            detokenizer = ByteDetokenizer(self.token_bytes, 0 if context else self._scheme.strip_spaces)
        markers = {id: name for id, name in self._special.items() if name in shown} if shown else {}
        return MarkedDetokenizer(detokenizer, markers) if markers else detokenizer

    def is_special(self, token_id: int) -> bool:
        """Whether the token marks structure, such as the end of a turn, and is not shown as text."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text: not always whole characters; empty for special and unknown tokens."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._make_bytes(token_id)
        return known

    def token_name(self, token_id: int) -> str:
        """The token as the vocabulary writes it; for special tokens such as `<|im_end|>`."""
        return self._inner.id_to_token(token_id) or f"<{token_id}>"

    def _make_bytes(self, token_id: int) -> bytes:
        token = self._inner.id_to_token(token_id)
        if token is None or token_id in self._special:
            return b""
        if self._scheme is None:
            return self._inner.decode([token_id]).encode()
        return self._scheme.to_bytes(token)


def _cut(lengths: Sequence[int], most: int) -> list[int]:
    """Lengths of which the greatest are made smaller, until there are no more than `most` tokens."""
    cut = list(lengths)
    while (excess := sum(cut) - max(0, most)) > 0:
        longest = max(cut)
        at = cut.index(longest)
        others = max((length for index, length in enumerate(cut) if index != at), default=0)
        cut[at] -= min(excess, max(1, longest - others))
    return cut


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How a vocabulary writes bytes. `strip_spaces`: how many leading spaces of a whole text are not part of it."""

    byte_level: bool
    byte_fallback: bool = False
    strip_spaces: int = 0

    def to_bytes(self, token: str) -> bytes:
        if self.byte_level:
            try:
                return bytes(_BYTE_OF[character] for character in token)
            except KeyError:
                return token.encode()
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.replace(_SPIECE_SPACE, " ").encode()


def _scheme_of(inner: tokenizers.Tokenizer) -> _Scheme | None:
    """The scheme that the tokenizer's decoder follows; None when tokens have no bytes of their own."""
    if inner.decoder is None:
        return None
    state: dict[str, Any] = orjson.loads(inner.decoder.__getstate__())
    parts: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"]:
        return _Scheme(byte_level=True)
    if kinds[:1] != ["Replace"] or parts[0] != {
        "type": "Replace", "pattern": {"String": _SPIECE_SPACE}, "content": " ",
    }:  # fmt: skip
        return None
    fallback = kinds[1:2] == ["ByteFallback"]
    match parts[2 if fallback else 1 :]:
        case [] | [{"type": "Fuse"}]:
            return _Scheme(byte_level=False, byte_fallback=fallback)
        case [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": int(start), "stop": 0}]:
            return _Scheme(byte_level=False, byte_fallback=fallback, strip_spaces=start)
    return None


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE (GPT-2) writes for bytes: printable ones themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()
