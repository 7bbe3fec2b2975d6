"""The four forms in which OpenAI's APIs take text: a text, texts, token ids, lists of token ids."""

from __future__ import annotations

from typing import Any


def as_prompts(value: Any) -> list[Any]:
    """Texts, or lists of token ids, as a list of them. Raises ValueError for anything else, or nothing."""
    if isinstance(value, str) or _is_token_ids(value):
        return [value]
    if isinstance(value, list) and value and (all(isinstance(prompt, str) for prompt in value)
                                              or all(_is_token_ids(prompt) for prompt in value)):  # fmt: skip
        return value
    raise ValueError("a string, a list of strings, a list of token ids or a list of those is expected, not empty")


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
