"""Router streams of a worker: which attempt came by which stream, under which ref.

A session is one open `Work` call. It ends when the router goes; then everything that came by it is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.core.attempt import Attempt
from baton.core.errors import InvalidRequest
from baton.rpc.v1 import worker_pb2 as pb

MAX_QUEUED_EVENTS = 4096  # of a router that does not read; then its session is broken


class RouterSession:
    """Events to one router. `put` never blocks; a router that stops reading loses the session, not the worker."""

    def __init__(self, router_id: str) -> None:
        self.router_id = router_id
        self._events: asyncio.Queue[pb.WorkerEvent | None] = asyncio.Queue()
        self._closed = False

    def put(self, event: pb.WorkerEvent) -> None:
        if self._closed:
            return
        if self._events.qsize() >= MAX_QUEUED_EVENTS:
            self.close()
            return
        self._events.put_nowait(event)

    def close(self) -> None:
        """No further events; the stream ends once the queued ones are sent."""
        self._closed = True
        self._events.put_nowait(None)

    async def next_event(self) -> pb.WorkerEvent | None:
        """The next event, or None when the session is over."""
        return await self._events.get()


@dataclass(slots=True)
class LiveAttempt:
    """An attempt that some router waits for."""

    attempt: Attempt
    session: RouterSession
    ref: int
    assigned_at: float
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class AttemptBook:
    """All live attempts, by name and by session. `empty` is set while there are none."""

    _live: dict[Attempt, LiveAttempt] = field(default_factory=dict)
    _by_session: defaultdict[RouterSession, set[Attempt]] = field(default_factory=lambda: defaultdict(set))
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.empty.set()

    def add(self, live: LiveAttempt) -> None:
        if live.attempt in self._live:
            raise InvalidRequest(f"attempt {live.attempt} is already running on this worker")
        self._live[live.attempt] = live
        self.empty.clear()
        self._by_session[live.session].add(live.attempt)

    def get(self, attempt: Attempt) -> LiveAttempt | None:
        return self._live.get(attempt)

    def remove(self, attempt: Attempt) -> LiveAttempt | None:
        """Forget an attempt; None when it is not (or no longer) known."""
        live = self._live.pop(attempt, None)
        if live is not None:
            if live.timer:
                live.timer.cancel()
            self._by_session[live.session].discard(attempt)
            if not self._live:
                self.empty.set()
        return live

    def drop_session(self, session: RouterSession) -> list[Attempt]:
        """Forget a session and all its attempts; returns them for cancelling."""
        return [a for a in list(self._by_session.pop(session, ())) if self.remove(a)]

    def group(self, attempts: Iterable[Attempt]) -> dict[RouterSession, list[LiveAttempt]]:
        groups: dict[RouterSession, list[LiveAttempt]] = {}
        for attempt in attempts:
            if live := self._live.get(attempt):
                groups.setdefault(live.session, []).append(live)
        return groups
