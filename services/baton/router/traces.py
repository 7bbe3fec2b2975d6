"""Spans of one request in the router: all of it, each wait for a placement, each attempt."""

from __future__ import annotations

from baton.core.errors import BatonError
from baton.router.policy import Placement
from baton.runtime import tracing
from baton.runtime.tracing import NO_SPAN, Span, Value


class RequestTrace:
    """Told by the request's life; costs next to nothing while nothing is traced.

    `parent`: the caller's traceparent; without one a trace begins here.
    """

    __slots__ = ("_attempt", "_place", "_request")

    def __init__(self, request_id: str, model: str, prompt_tokens: int, parent: str) -> None:
        self._request = self._place = self._attempt = NO_SPAN
        if tracing.is_on():
            known: dict[str, Value] = {
                "baton.request_id": request_id,
                "baton.model": model,
                "baton.prompt_tokens": prompt_tokens,
            }
            self._request = tracing.enter("router.request", parent, known)
            self._place = self._below("router.place")

    @property
    def traceparent(self) -> str:
        """Of the present attempt: what its workers work for."""
        return self._attempt.traceparent

    def placed(self, attempt: int, placement: Placement) -> None:
        if not self._request.traceparent:
            return
        self._place.end()
        self._attempt = self._below("router.attempt")
        self._attempt.set(
            {
                "baton.attempt": attempt,
                "baton.prefill_worker": placement.prefill,
                "baton.decode_worker": placement.decode or placement.prefill,
                "baton.placement": placement.reason,
                "baton.extend_tokens": placement.extend_tokens,
                "baton.predicted_s": placement.predicted_s,
                "baton.pull_from": placement.pull.source if placement.pull else "",
            }
        )

    def first_token(self) -> None:
        self._attempt.event("first token")

    def failed(self, error: BatonError) -> None:
        """The attempt is given up; another may follow."""
        self._attempt.end(f"{error.code}: {error.message}")
        self._place = self._below("router.place")

    def over(self, outcome: str, completion_tokens: int, error: str = "") -> None:
        if not self._request:
            return
        self._place.end()
        self._attempt.end(error)
        self._request.set({"baton.outcome": outcome, "baton.completion_tokens": completion_tokens})
        self._request.end(error)

    def _below(self, name: str) -> Span:
        return tracing.start(name, self._request.traceparent)
