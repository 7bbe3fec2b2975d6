"""Handoffs of one attempt between several tensor-parallel ranks: parts, each a handoff of its own.

Every pair of ranks that deal with each other (baton.kv.reshard.ranks) has its own lease, record and checksums. A worker
hears of one handoff: it is good when all parts are, and its pages are its own again when no part has hold of them. When
one part ends otherwise, the rest are of no use to anybody and are ended too. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from baton.core.attempt import Attempt
from baton.kv.handoff.model import Failure, ReportFailed, ReportFetched, ReportReleased, State


@dataclass(frozen=True, slots=True)
class Part(Attempt):
    """The handoff of an attempt with one `rank` of the other side. Between two agents its attempt names it."""

    rank: int = 0

    @classmethod
    def of(cls, attempt: Attempt, rank: int) -> Part:
        return cls(attempt.request_id, attempt.n, rank)

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.request_id, self.n)


class OfferParts:
    """One attempt that several ranks of a reading worker take."""

    def __init__(self, attempt: Attempt, ranks: Iterable[int]) -> None:
        self.parts: set[Attempt] = {Part.of(attempt, rank) for rank in ranks}
        self._report = ReportReleased(attempt, State.RELEASED.value, "")

    def ended(self, report: ReportReleased) -> ReportReleased | None:
        """A part's lease is over. Returns what the worker is to be told when it was the last, else None; unless
        `report` is of a release, the caller aborts those in `parts`."""
        self.parts.discard(report.attempt)
        if self._report.outcome == State.RELEASED.value:
            self._report = replace(report, attempt=self._report.attempt)
        return None if self.parts else self._report


class FetchParts:
    """One attempt that comes from several ranks of a source. `parts`: those that have not ended."""

    def __init__(self, attempt: Attempt, ranks: Iterable[int]) -> None:
        self.parts: set[Attempt] = {Part.of(attempt, rank) for rank in ranks}
        self.reason = ""  # why it has failed, once it has
        self._attempt = attempt
        self._fetched: ReportFetched | None = None

    def ended(self, report: ReportFetched | ReportFailed) -> ReportFetched | ReportFailed | None:
        """A part has all its bytes, or has failed and is quiet. Returns what the worker is to be told when it was the
        last, else None; after a failure the caller cancels those in `parts`."""
        self.parts.discard(report.attempt)
        if isinstance(report, ReportFailed):
            self.reason = self.reason or report.reason
        else:
            self._add(report)
        if self.parts:
            return None
        if self.reason or self._fetched is None:
            return ReportFailed(self._attempt, self.reason)
        return replace(self._fetched, attempt=self._attempt)

    def _add(self, report: ReportFetched) -> None:
        before = self._fetched or replace(report, bytes_read=0)
        if (before.tokens, before.state) != (report.tokens, report.state):
            self.reason = self.reason or Failure.RECORD.because("the source's ranks committed different things")
        computed_at = max(before.computed_at, report.computed_at)
        self._fetched = replace(before, bytes_read=before.bytes_read + report.bytes_read, computed_at=computed_at)
