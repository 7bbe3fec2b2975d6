"""What an engine can run at all: checks of a request before it is queued, so that it cannot fail or wait in vain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baton.core.errors import InvalidRequest, PromptTooLong
from baton.engine.api import EngineRequest, Stage
from baton.engine.sampler import check_params


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one engine. `pages` are those that requests can have, the reserved ones not counted."""

    vocab_size: int
    max_context_tokens: int
    pages: int
    page_size: int

    @property
    def request_tokens(self) -> int:
        """Most tokens, prompt and output, of one request. The last one drawn needs no place in the pool."""
        return min(self.max_context_tokens, self.pages * self.page_size + 1)

    def check(self, request: EngineRequest) -> None:
        """Raises InvalidRequest or PromptTooLong, naming what is wrong, when the request can never run here."""
        self._check_lengths(request)
        self._check_token_ids(request)
        if request.pooling is not None and request.stage is not Stage.RUN_ALL:
            raise InvalidRequest("a pooling request is of stage run_all", param="stage")
        check_params(request.sampling, self.vocab_size)

    def _check_lengths(self, request: EngineRequest) -> None:
        tokens = len(request.token_ids)
        if tokens == 0:
            raise InvalidRequest("the prompt is empty; it must have at least one token", param="prompt")
        if not 1 <= request.prompt_tokens <= tokens:
            raise InvalidRequest(
                f"prompt_tokens is {request.prompt_tokens}; with {tokens} token ids it must be 1 to {tokens}",
                param="prompt",
            )
        if request.pooling is None and tokens > self.max_context_tokens - 1:
            raise PromptTooLong(
                f"the prompt has {tokens} tokens; the limit is {self.max_context_tokens - 1}, one less than the "
                f"context of {self.max_context_tokens}, to leave room for an answer",
                param="prompt",
            )
        if tokens > self.max_context_tokens:
            raise PromptTooLong(
                f"the input has {tokens} tokens; the limit is {self.max_context_tokens}", param="prompt"
            )
        # A FETCH goes on from a token that another worker has drawn, and that needs a place here.
        in_pool = tokens + (request.stage is Stage.FETCH)
        needed = -(-in_pool // self.page_size)
        if needed > self.pages:
            raise InvalidRequest(
                f"{in_pool} tokens need {needed} pages of {self.page_size} tokens; the pool has {self.pages}",
                param="prompt",
            )
        emitted = tokens - request.prompt_tokens
        if emitted >= request.sampling.max_tokens:
            raise InvalidRequest(
                f"{emitted} tokens were emitted already; max_tokens is {request.sampling.max_tokens}",
                param="max_tokens",
            )

    def _check_token_ids(self, request: EngineRequest) -> None:
        token_ids = np.asarray(request.token_ids)
        if token_ids.dtype.kind not in "iu" or token_ids.ndim != 1:
            raise InvalidRequest("token ids must be a flat sequence of integers", param="prompt")
        wrong = np.flatnonzero((token_ids < 0) | (token_ids >= self.vocab_size))
        if len(wrong):
            raise InvalidRequest(
                f"token id {int(token_ids[wrong[0]])} at position {int(wrong[0])} is not in the vocabulary: "
                f"ids are 0 to {self.vocab_size - 1}",
                param="prompt",
            )
