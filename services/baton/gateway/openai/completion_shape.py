"""What a completion looks like: the text, after the prompt where that is echoed, and its logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baton.gateway.generation import Choice
from baton.gateway.openai.completion_prompts import EncodedPrompt
from baton.gateway.openai.logprobs import CompletionLogprobs
from baton.gateway.output import Piece
from baton.gateway.respond import Answer
from baton.gateway.tokenizer import Tokenizer


class CompletionShape:
    """`echoed`: the prompts, when they are to stand before their continuations; `shows_logprobs`: with logprobs."""

    object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, tokenizer: Tokenizer, echoed: Sequence[EncodedPrompt] | None, *, shows_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._echoed = echoed
        self._shows_logprobs = shows_logprobs

    def whole(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choice
        logprobs = self._new_logprobs(choice)
        if logprobs is not None:
            self._add_prompt(choice, logprobs)
            logprobs.add(answer.tokens)
        return _entry(choice, self._prefix(choice) + answer.text, logprobs, choice.finish)

    def opening(self, choice: Choice, piece: Piece) -> dict[str, Any] | None:
        if self._echoed is None:
            return None
        logprobs = self._new_logprobs(choice)
        if logprobs is not None:
            self._add_prompt(choice, logprobs)
        return _entry(choice, self._prefix(choice), logprobs)

    def deltas(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        if not piece.text and not piece.tokens:
            return []
        logprobs = self._new_logprobs(choice)
        if logprobs is not None:
            logprobs.add(piece.tokens)
        return [_entry(choice, piece.text, logprobs)]

    def closing(self, choice: Choice, finish: str) -> dict[str, Any]:
        return _entry(choice, "", None, finish)

    def _prefix(self, choice: Choice) -> str:
        return self._echoed[choice.prompt].text if self._echoed is not None else ""

    def _new_logprobs(self, choice: Choice) -> CompletionLogprobs | None:
        if not self._shows_logprobs:
            return None
        return CompletionLogprobs(self._tokenizer, base=len(self._prefix(choice)))

    def _add_prompt(self, choice: Choice, logprobs: CompletionLogprobs) -> None:
        if self._echoed is not None:
            logprobs.add_prompt(choice.prompt_token_ids, choice.prompt_logprobs)


def _entry(choice: Choice, text: str, logprobs: CompletionLogprobs | None, finish: str | None = None) -> dict[str, Any]:
    body = logprobs.body() if logprobs is not None else None
    return {"index": choice.index, "text": text, "logprobs": body, "finish_reason": finish}
