"""From what clients send to what the model reads: texts, pairs of texts and token ids, within the model's limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.core.errors import InvalidRequest, PromptTooLong
from baton.gateway import metrics
from baton.gateway.service import Service

MAX_INPUTS = 2048  # of one request, as OpenAI has it


@dataclass(frozen=True, slots=True)
class PoolingInput:
    """What one pooling request reads. `second_text_at`: where the second of a pair begins; 0: it is not marked."""

    token_ids: Sequence[int]
    second_text_at: int = 0


class TextReader:
    """Makes inputs of what one HTTP request brings. `truncate`: None: what is too long is an error; else the most
    tokens of one input, -1 for the model's limit, to which its texts are cut at their ends.

    `ends`: the end token is part of a text, for models that want it; not where it is asked what comes next.
    Raises InvalidRequest, PromptTooLong that name `param`.
    """

    def __init__(self, service: Service, param: str, truncate: int | None = None, *, ends: bool = True) -> None:
        self._service = service
        self._tokenizer = service.model.tokenizer
        self._appended = service.model.pooling.appended if ends else ()
        self._param = param
        limit = service.context_tokens()
        if truncate is not None and truncate > limit:
            message = f"'truncate_prompt_tokens' is {truncate}; this model takes at most {limit} tokens."
            raise InvalidRequest(message, param="truncate_prompt_tokens")
        self._cuts = truncate is not None
        self._limit = limit if truncate is None or truncate < 0 else truncate

    def read_all(self, inputs: Sequence[str | list[int]]) -> list[PoolingInput]:
        """Texts or token ids, one after the other."""
        with metrics.tokenizing():
            return [self._read(one, index) for index, one in enumerate(inputs)]

    def read_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[PoolingInput]:
        with metrics.tokenizing():
            return [self._pair(first, second, index) for index, (first, second) in enumerate(pairs)]

    def read_wrapped(self, before: str, texts: Sequence[str], after: str) -> list[PoolingInput]:
        """Texts within a prompt of which special tokens are part. What is cut is the end of the text."""
        encode = self._tokenizer.encode
        with metrics.tokenizing():
            [head, tail] = encode([before, after], add_special_tokens=False)
            bodies = encode(list(texts), add_special_tokens=False)
        room = self._limit - len(head) - len(tail)
        if self._cuts:
            bodies = [body[: max(0, room)] for body in bodies]
        return [self._checked([*head, *body, *tail], index) for index, body in enumerate(bodies)]

    def _read(self, one: str | list[int], index: int) -> PoolingInput:
        if not one:
            raise InvalidRequest(f"'{self._param}[{index}]' is empty.", param=self._param)
        if isinstance(one, str):
            room = self._limit - len(self._appended) if self._cuts else None
            token_ids, _ = self._tokenizer.encode_texts([one], room)
            return self._checked([*token_ids, *self._appended], index)
        size = self._service.model.vocab_size
        for token in one:
            if not 0 <= token < size:
                message = f"'{self._param}[{index}]' names token {token}; ids are from 0 to {size - 1}."
                raise InvalidRequest(message, param=self._param)
        return self._checked(one[: self._limit] if self._cuts else one, index)

    def _pair(self, first: str, second: str, index: int) -> PoolingInput:
        if not first or not second:
            raise InvalidRequest(f"'{self._param}[{index}]' is empty.", param=self._param)
        room = self._limit - len(self._appended) if self._cuts else None
        token_ids, second_text_at = self._tokenizer.encode_texts([first, second], room)
        return self._checked([*token_ids, *self._appended], index, second_text_at)

    def _checked(self, token_ids: list[int], index: int, second_text_at: int = 0) -> PoolingInput:
        if len(token_ids) > self._limit:
            raise PromptTooLong(
                f"'{self._param}[{index}]' has {len(token_ids)} tokens, but this model takes at most {self._limit}; "
                "'truncate_prompt_tokens' lets it be cut.",
                param=self._param,
            )
        return PoolingInput(token_ids, second_text_at)
