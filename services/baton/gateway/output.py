"""One request's output: tokens in, text out. Detokenizing, stop strings and what belongs to which token, without I/O.

Between the router's events and an API's response. Knows no HTTP and no API's shapes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from baton.client import TokenLogprobs
from baton.gateway.detokenizer import Detokenizer
from baton.gateway.parsers.events import Event
from baton.gateway.stop import StopMatcher

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class OutputToken:
    """One token of the text. `offset`: characters of the output before it."""

    logprobs: TokenLogprobs
    offset: int


@dataclass(slots=True)
class Piece:
    """What can be shown next. `tokens`: those whose text begins in it, when logprobs were asked for.

    `events`: what the text means, of a choice that is taken apart; else empty. `stop`: the stop string that ended the
    output, if one did. `finish` is set on the last piece.
    """

    text: str = ""
    events: list[Event] = field(default_factory=list)
    tokens: list[OutputToken] = field(default_factory=list)
    finish: Finish | None = None
    stop: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.events or self.tokens or self.finish)


class OutputText:
    """The text of one sequence.

    `stop_token_ids`: tokens that end the sequence and are not part of its text. Stop strings are looked for in what
    comes after the first `min_tokens` tokens. `completion_tokens` counts all tokens taken, the ending one included.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: Sequence[str] = (),
        stop_token_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
    ) -> None:
        self.completion_tokens = 0
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops) if stops else None
        self._stop_token_ids = stop_token_ids
        self._min_tokens = min_tokens
        self._decoded = 0  # characters that came out of the detokenizer
        self._shown = 0  # characters given out; never part of a stop string
        self._waiting: deque[OutputToken] = deque()  # tokens whose text has not been given out

    def push(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None = None) -> Piece:
        """Take new tokens. When `finish` is set on the result, a stop string was found: nothing more may be pushed."""
        texts = []
        for index, token_id in enumerate(token_ids):
            self.completion_tokens += 1
            if token_id in self._stop_token_ids:
                continue
            if logprobs is not None:
                self._waiting.append(OutputToken(logprobs[index], self._decoded))
            decoded = self._detokenizer.push(token_id)
            self._decoded += len(decoded)
            if self._matcher is None or self.completion_tokens <= self._min_tokens:
                texts.append(decoded)
                continue
            matched = self._matcher.push(decoded)
            texts.append(matched.text)
            if matched.stop is not None:
                return self._piece("".join(texts), "stop", matched.stop)
        return self._piece("".join(texts))

    def finish(self, reason: Finish) -> Piece:
        """The sequence is over: whatever was held back, unless it completes a stop string."""
        tail = self._detokenizer.flush()
        self._decoded += len(tail)
        if self._matcher is None:
            return self._piece(tail, reason)
        matched = self._matcher.push(tail)
        if matched.stop is not None:
            return self._piece(matched.text, "stop", matched.stop)
        return self._piece(matched.text + self._matcher.flush(), reason)

    def _piece(self, text: str, finish: Finish | None = None, stop: str | None = None) -> Piece:
        self._shown += len(text)
        tokens = []
        everything = finish is not None and stop is None
        while self._waiting and (everything or self._waiting[0].offset < self._shown):
            tokens.append(self._waiting.popleft())
        return Piece(text, tokens=tokens, finish=finish, stop=stop)
