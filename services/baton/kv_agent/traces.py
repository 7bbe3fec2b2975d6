"""Spans of one side of the agent: from its worker's word, or a reader's, to the end of the handoff."""

from __future__ import annotations

from baton.core.attempt import Attempt
from baton.runtime import tracing
from baton.runtime.tracing import Attributes, Span

MOST_OPEN = 4096


class HandoffSpans:
    """By attempt. What is not traced is not remembered; what is said about it is dropped. Event loop only.

    Of a reader that is lost before its pull was answered nothing more is heard: the oldest spans make room.
    """

    def __init__(self) -> None:
        self._spans: dict[Attempt, Span] = {}

    def begin(self, name: str, attempt: Attempt, parent: str, attributes: Attributes) -> None:
        if span := tracing.start(name, parent, attributes):
            span.set({"baton.request_id": attempt.request_id, "baton.attempt": attempt.n})
            self._spans[attempt] = span
            if len(self._spans) > MOST_OPEN:
                self.end(next(iter(self._spans)), {}, "its end was not heard of")

    def traceparent(self, attempt: Attempt) -> str:
        span = self._spans.get(attempt)
        return span.traceparent if span else ""

    def event(self, attempt: Attempt, name: str, at: float) -> None:
        """`at`: wall clock; 0 = it has not happened."""
        if at and (span := self._spans.get(attempt)):
            span.event(name, at=at)

    def end(self, attempt: Attempt, attributes: Attributes, error: str = "") -> None:
        if span := self._spans.pop(attempt, None):
            span.set(attributes)
            span.end(error)
