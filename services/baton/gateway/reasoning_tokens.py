"""How many of an answer's tokens were reasoning."""

from __future__ import annotations

from collections.abc import Sequence

from baton.gateway.parsers.events import CallArguments, CallStart, Content, Event, Reasoning


class ReasoningTokens:
    """Counts those of one answer, as its text is taken apart.

    Tokens that show nothing (markers, parts of a character) count with what follows them. Where one step of the model
    brings both reasoning and something else, its tokens are shared by the lengths of the texts.
    """

    def __init__(self) -> None:
        self.count = 0
        self._decided = 0

    def take(self, tokens: int, events: Sequence[Event]) -> None:
        """`tokens`: of the answer so far; `events`: what the latest of them made of its text."""
        if not events:
            return
        new, self._decided = tokens - self._decided, tokens
        thought = sum(len(event.text) for event in events if isinstance(event, Reasoning))
        said = sum(_length(event) for event in events)
        if thought:
            self.count += round(new * thought / (thought + said))


def _length(event: Event) -> int:
    match event:
        case Content(text) | CallArguments(_, text) | CallStart(_, _, text):
            return len(text)
    return 0
