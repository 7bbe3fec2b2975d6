"""Logprobs in OpenAI's shapes: an object per token, with bytes (chats, responses), and four arrays (completions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baton.client import TokenLogprobs
from baton.gateway.output import OutputToken
from baton.gateway.tokenizer import Tokenizer

_LEAST_LOGPROB = -9999.0  # minus infinity has no JSON


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[OutputToken]) -> dict[str, Any]:
    return {"content": [_chat_entry(tokenizer, token.logprobs) for token in tokens], "refusal": None}


def part_logprobs(tokenizer: Tokenizer, tokens: Sequence[OutputToken]) -> list[dict[str, Any]]:
    """Those of the Responses API: as in chats, but a token without bytes has an empty list of them."""
    entries = [_chat_entry(tokenizer, token.logprobs) for token in tokens]
    tops = [top for entry in entries for top in entry["top_logprobs"]]
    for told in (*entries, *tops):
        told["bytes"] = told["bytes"] or []
    return entries


def _chat_entry(tokenizer: Tokenizer, token: TokenLogprobs) -> dict[str, Any]:
    top = [_chat_token(tokenizer, token_id, logprob) for token_id, logprob in token.top]
    return {**_chat_token(tokenizer, token.token_id, token.logprob), "top_logprobs": top}


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    special = tokenizer.is_special(token_id)
    data = None if special else list(tokenizer.token_bytes(token_id))
    return {"token": token_text(tokenizer, token_id), "logprob": max(logprob, _LEAST_LOGPROB), "bytes": data}


def token_text(tokenizer: Tokenizer, token_id: int, prefix: str = "") -> str:
    """The token's text; its bytes as `\\xe2\\x80`, after `prefix`, when they are not whole characters."""
    if tokenizer.is_special(token_id):
        return tokenizer.token_name(token_id)
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


class CompletionLogprobs:
    """The arrays of one choice's (part of a) text. `base`: characters before the output, those of an echoed prompt."""

    def __init__(self, tokenizer: Tokenizer, base: int = 0) -> None:
        self._tokenizer = tokenizer
        self._base = base
        self._arrays: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(self, tokens: Sequence[OutputToken]) -> CompletionLogprobs:
        for token in tokens:
            self._append(token.logprobs, self._base + token.offset)
        return self

    def add_prompt(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """An echoed prompt: `logprobs` are those of positions 1.. (the first token has none)."""
        detokenizer, offset = self._tokenizer.detokenizer(), 0
        for position, token_id in enumerate(token_ids):
            if 0 < position <= len(logprobs):
                self._append(logprobs[position - 1], offset)
            else:
                self._arrays["tokens"].append(self._text(token_id))
                self._arrays["token_logprobs"].append(None)
                self._arrays["top_logprobs"].append(None)
                self._arrays["text_offset"].append(offset)
            offset += len(detokenizer.push(token_id))
        return self

    def body(self) -> dict[str, list[Any]]:
        return self._arrays

    def _append(self, token: TokenLogprobs, offset: int) -> None:
        text = self._text(token.token_id)
        top = {self._text(token_id): max(logprob, _LEAST_LOGPROB) for token_id, logprob in token.top}
        top.setdefault(text, max(token.logprob, _LEAST_LOGPROB))
        self._arrays["tokens"].append(text)
        self._arrays["token_logprobs"].append(max(token.logprob, _LEAST_LOGPROB))
        self._arrays["top_logprobs"].append(top)
        self._arrays["text_offset"].append(offset)

    def _text(self, token_id: int) -> str:
        return token_text(self._tokenizer, token_id, prefix="bytes:")
