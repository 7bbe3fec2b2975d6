"""Filling in the middle: a prompt in which the model reads what comes before and after, and writes what is between.

A model that was trained for it has tokens of its own around the parts (Bavarian and others, 2022, arXiv:2207.14255);
which of the known sets a vocabulary has says how its prompts are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.core.errors import InvalidRequest
from baton.gateway.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Markers:
    """Tokens before the first part, between the parts, and after the second. `suffix_first`: the order of the parts.
    `ends`: tokens with which such an answer may end, besides the model's own."""

    opening: str
    between: str
    closing: str | None
    ends: tuple[str, ...] = ()
    suffix_first: bool = False


_KNOWN = (
    _Markers(
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|endoftext|>", "<|file_separator|>", "<|file_sep|>")
    ),
    _Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<file_sep>")),
    _Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>",)),
    _Markers("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    _Markers("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    _Markers("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", ("<|endoftext|>",)),
    _Markers("[SUFFIX]", "[PREFIX]", None, suffix_first=True),
)


@dataclass(frozen=True, slots=True)
class FillIn:
    """How one model's prompts are written. Token ids; `ends` are tokens that end an answer."""

    opening: int
    between: int
    closing: tuple[int, ...]
    ends: tuple[int, ...]
    suffix_first: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> FillIn:
        """Raises InvalidRequest where the vocabulary has no such tokens."""
        for markers in _KNOWN:
            names = (markers.opening, markers.between, *((markers.closing,) if markers.closing else ()))
            ids = [id for name in names if (id := tokenizer.id_of(name)) is not None]
            if len(ids) == len(names):
                ends = tuple(id for name in markers.ends if (id := tokenizer.id_of(name)) is not None)
                return cls(ids[0], ids[1], tuple(ids[2:]), ends, markers.suffix_first)
        raise InvalidRequest(
            "This model cannot fill in: its tokenizer has none of the known tokens for a 'suffix'.", param="suffix"
        )

    def prompt(self, tokenizer: Tokenizer, before: str, after: str) -> list[int]:
        """The tokens to be continued with what is between `before` and `after`."""
        texts = [after, before] if self.suffix_first else [before, after]
        first, second = tokenizer.encode(texts, add_special_tokens=False)
        return [*_head(tokenizer), self.opening, *first, self.between, *second, *self.closing]


def _head(tokenizer: Tokenizer) -> Sequence[int]:
    """What the tokenizer puts before every text, such as BOS."""
    [bare], [whole] = (tokenizer.encode(["a"], add_special_tokens=special) for special in (False, True))
    return whole[: whole.index(bare[0])]
