"""Announcements that one reader may have unanswered, over all its handoffs with a source: given out in turns. Pure."""

from __future__ import annotations

from collections import OrderedDict

from baton.core.attempt import Attempt


class PairCredits:
    """`most` credits. While handoffs wait for one, each gets one when it is its turn, and then waits behind the others:
    so a prompt with much to announce never keeps the others of the pair from theirs.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: OrderedDict[Attempt, None] = OrderedDict()
        self._turn: Attempt | None = None

    def take(self, attempt: Attempt) -> bool:
        """A credit for one announcement; False: the attempt waits from now on, and will be named by `next_turn`."""
        if self._free and (attempt == self._turn or not self._waiting):
            self._turn = None
            self._free -= 1
            return True
        self._waiting.setdefault(attempt)
        return False

    def give(self) -> None:
        """An announcement was answered."""
        self._free += 1

    def leave(self, attempt: Attempt, unanswered: int) -> None:
        """The handoff has ended with so many unanswered."""
        self._waiting.pop(attempt, None)
        self._free += unanswered

    def next_turn(self) -> Attempt | None:
        """Who may `take` now, and waits no longer; None when nobody waits or no credit is free."""
        self._turn = self._waiting.popitem(last=False)[0] if self._free and self._waiting else None
        return self._turn
