"""What the own worker asks for, and what it hears of it. A fetch from several ranks of a source is one to the worker.

Inside the agent it is one handoff for each rank then (`baton.kv.handoff.parts`), each over a connection of its own;
messages name the attempt only, and which part they are about follows from the connection that they come by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from baton.core.attempt import Attempt
from baton.core.hashing import HASH_BYTES
from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.kv.handoff import FetchParts, Part, ReportFailed, ReportFetched
from baton.kv.handoff.model import Pages
from baton.kv.local import Fetch, Fetched, FetchFailed, Hello, SourceRank
from baton.kv.reshard import partners


@dataclass(slots=True)
class Times:
    """Wall clock, for the worker's report; 0 = not yet."""

    first_read_at: float = 0.0
    first_arrival_at: float = 0.0

    def include(self, other: Times) -> None:
        """The earlier of each."""
        self.first_read_at = min(filter(None, (self.first_read_at, other.first_read_at)), default=0.0)
        self.first_arrival_at = min(filter(None, (self.first_arrival_at, other.first_arrival_at)), default=0.0)


@dataclass(frozen=True, slots=True)
class _Parted:
    """A fetch from several ranks."""

    fetch: FetchParts
    times: Times = field(default_factory=Times)


class Fetches:
    """The fetches of one worker whose pool is laid out as `layout`. `tell_worker` sends to it."""

    def __init__(self, layout: KvLayout, tell_worker: Callable[[Fetched | FetchFailed], None]) -> None:
        self._layout = layout
        self._tell_worker = tell_worker
        self._times: dict[Attempt, Times] = {}
        self._parted: dict[Attempt, _Parted] = {}
        self._part_by: dict[tuple[Hashable, Attempt], Part] = {}  # by connection

    def handoffs(self, message: Fetch) -> list[tuple[Attempt, int, SourceRank]]:
        """What a fetch comes to: the attempt, or its parts, each with a rank of the source."""
        first = SourceRank(message.source_address, message.source_agent_epoch, message.source_worker_epoch)
        sources, attempt = (first, *message.more_ranks), message.attempt
        ranks = list(partners(self._layout, len(sources)))
        if len(ranks) == 1:
            return [(attempt, ranks[0], sources[ranks[0]])]
        self._parted.setdefault(attempt, _Parted(FetchParts(attempt, ranks)))
        return [(Part.of(attempt, rank), rank, sources[rank]) for rank in ranks]

    def begin(self, name: Attempt, connection: Hashable) -> None:
        """A handoff begins, over this connection."""
        self._times[name] = Times()
        if isinstance(name, Part):
            self._part_by[connection, name.attempt] = name

    def times(self, name: Attempt) -> Times:
        """To be written into; of a handoff that has ended, nobody reads it."""
        return self._times.get(name) or Times()

    def name(self, attempt: Attempt, connection: Hashable) -> Attempt:
        """What a message by this connection is about."""
        return self._part_by.get((connection, attempt), attempt)

    def names(self, attempt: Attempt) -> list[Attempt]:
        """The attempt, or those of its parts that have not ended."""
        parted = self._parted.get(attempt)
        return list(parted.fetch.parts) if parted is not None else [attempt]

    def useless(self, attempt: Attempt) -> list[tuple[Attempt, str]]:
        """Parts of an attempt of which another has failed, and why."""
        fetch = self._parted[attempt].fetch if attempt in self._parted else None
        reason = fetch.reason if fetch is not None else ""
        return [(part, f"another rank failed: {reason}") for part in self.names(attempt)] if reason else []

    def ended(self, report: ReportFetched | ReportFailed) -> None:
        """A handoff has ended: tell the worker, of one in parts when the last of them has."""
        name = report.attempt
        times = self._times.pop(name)
        if isinstance(name, Part):
            parted = self._parted[name.attempt]
            parted.times.include(times)
            whole = parted.fetch.ended(report)
            if whole is None:
                return
            report, times = whole, parted.times
            del self._parted[name.attempt]
            self._part_by = {key: part for key, part in self._part_by.items() if key[1] != name.attempt}
        if isinstance(report, ReportFailed):
            self._tell_worker(FetchFailed(report.attempt, report.reason))
        else:
            self._tell_worker(_fetched(report, times))


def _fetched(report: ReportFetched, times: Times) -> Fetched:
    done_at = time.time()
    return Fetched(
        attempt=report.attempt,
        tokens=report.tokens,
        state=report.state,
        bytes_read=report.bytes_read,
        first_read_at=times.first_read_at or done_at,
        first_arrival_at=times.first_arrival_at,
        computed_at=report.computed_at,
        done_at=done_at,
    )


def what_is_wrong(fetch: Fetch, page_ids: Pages, hello: Hello) -> str:
    """With a worker's request; empty when nothing is."""
    layout = hello.layout
    pages, blocks = layout.pages_for(fetch.tokens), layout.blocks_for(fetch.tokens)
    if fetch.tokens < 1 or not 0 <= fetch.first_page <= pages:
        return f"{fetch.tokens} tokens from page {fetch.first_page} on"
    if len(page_ids) != pages - fetch.first_page:
        return f"{len(page_ids)} page ids for pages {fetch.first_page}:{pages}"
    hashes = len(fetch.block_hashes) / HASH_BYTES
    lacking = blocks - fetch.first_page if layout.has_full else min(max(hashes, 1), blocks)
    if hashes and (hashes != lacking or fetch.tokens % layout.page_size):
        return f"a pull of {fetch.tokens} tokens with {hashes:g} block hashes for {len(page_ids)} whole pages"
    if len(page_ids) and (page_ids.min() < RESERVED_PAGES or page_ids.max() >= hello.pages):
        return f"a page id is outside {RESERVED_PAGES} to {hello.pages - 1}"
    if len(np.unique(page_ids)) != len(page_ids):
        return "a page is named twice"
    return ""
