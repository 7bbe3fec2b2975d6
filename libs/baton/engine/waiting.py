"""Requests in order of rank, and the order in which waiting ones are tried.

Rank is priority, then arrival. Among waiting requests of one priority the longest cached prefix goes first, since
it costs least and its pages may be evicted soon; but nobody is passed over for that for longer than `patience_s`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from baton.engine.ledger import PageLedger
from baton.engine.request import RequestState

SCAN_REQUESTS = 128  # waiting requests looked at in one step: bounds the step's cost, not the queue


class Ranked:
    """Requests sorted by rank. Insertion and removal find their place by bisection."""

    def __init__(self) -> None:
        self._requests: list[RequestState] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[RequestState]:
        return iter(self._requests)

    def __reversed__(self) -> Iterator[RequestState]:
        return reversed(self._requests)

    def add(self, request: RequestState) -> None:
        insort(self._requests, request, key=_rank)

    def remove(self, request: RequestState) -> None:
        del self._requests[bisect_left(self._requests, request.rank, key=_rank)]

    def first(self, count: int) -> list[RequestState]:
        return self._requests[:count]


def admission_order(waiting: Ranked, ledger: PageLedger, now: float, patience_s: float) -> list[RequestState]:
    """The waiting requests to try now, best first.

    By priority; within it first those that have waited for `patience_s` or were preempted, by arrival, then the others
    by the length of their cached prefix. Finding that length costs two look-ups while it has not changed.
    """

    def order(request: RequestState) -> tuple[int, bool, int, int]:
        in_turn = request.admitted_before or now - request.arrived_s >= patience_s
        cached = 0 if in_turn else ledger.cached_blocks(request)
        return (-request.priority, not in_turn, -cached, request.arrival)

    return sorted(waiting.first(SCAN_REQUESTS), key=order)


def shared_blocks(one: RequestState, other: RequestState, known: int) -> int:
    """Leading blocks that `one` could take from the cache once `other` is computed, or `known` if it is no more.

    Hashes are chained, so the common prefix is found by bisection.
    """
    low, high = known, min(one.cacheable_blocks, len(other.hashes))
    if low >= high or one.hashes[low] != other.hashes[low]:
        return known
    while low < high:
        middle = (low + high + 1) // 2
        if one.hashes[middle - 1] == other.hashes[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def _rank(request: RequestState) -> tuple[int, int]:
    return request.rank
