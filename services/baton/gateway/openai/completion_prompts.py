"""The prompts of a completion: texts or token ids, with a suffix or without, as tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from baton.core.errors import InvalidRequest
from baton.gateway.fill_in import FillIn
from baton.gateway.text_model import TextModel


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """`text`: what `echo` shows; empty for token ids that are not echoed. `ends`: tokens that end its answer, besides
    the model's own."""

    text: str
    token_ids: list[int]
    ends: tuple[int, ...] = ()


def encode_texts(model: TextModel, texts: Sequence[str], suffix: str) -> list[EncodedPrompt]:
    """Raises InvalidRequest for a suffix that the model has no tokens for."""
    if suffix:
        fill_in = FillIn.of(model.tokenizer)
        return [EncodedPrompt(text, fill_in.prompt(model.tokenizer, text, suffix), fill_in.ends) for text in texts]
    encoded = model.tokenizer.encode(texts, add_special_tokens=True)
    return [EncodedPrompt(text, token_ids) for text, token_ids in zip(texts, encoded, strict=True)]


def check_tokens(model: TextModel, prompts: Sequence[list[int]], *, echo: bool) -> list[EncodedPrompt]:
    """Prompts that came as tokens. Raises InvalidRequest for ids that do not exist."""
    for token in itertools.chain.from_iterable(prompts):
        if not 0 <= token < model.vocab_size:
            raise InvalidRequest(
                f"The prompt names token {token}; ids are from 0 to {model.vocab_size - 1}.", param="prompt"
            )
    return [EncodedPrompt(model.tokenizer.decode(ids) if echo else "", ids) for ids in prompts]
