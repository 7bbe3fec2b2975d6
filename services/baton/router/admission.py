"""Admission: who is taken on, and the waiting rooms of those that have no worker yet, one for each model.

Refusals come at once: a queue that is full, or too long for the request's deadline, helps nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from baton.core.errors import ModelNotFound, Overloaded
from baton.router.fair_queue import FairQueue
from baton.router.fleet import Fleet
from baton.router.request import Clock, Request, Submission
from baton.router.settings import RouterSettings


class WaitEstimate:
    """How long a queue takes to drain, from the pace at which requests left it lately."""

    SMOOTHING = 0.2

    def __init__(self) -> None:
        self._last_at: float | None = None
        self._interval_s: float | None = None

    def left(self, now: float, *, others_wait: bool) -> None:
        """One request left the queue. `others_wait`: the queue was not empty, so that the pace means something."""
        if self._last_at is not None and others_wait:
            interval_s = now - self._last_at
            if self._interval_s is None:
                self._interval_s = interval_s
            self._interval_s += self.SMOOTHING * (interval_s - self._interval_s)
        self._last_at = now if others_wait else None

    def wait_s(self, position: int) -> float | None:
        """Expected wait behind `position` others; None while nothing is known."""
        return None if self._interval_s is None else position * self._interval_s


class Admission:
    """Waiting requests of all models, bounded.

    `is_settled()` says whether every worker there is has had time to say what it serves: only then is a model that none
    has named unknown.
    """

    def __init__(self, settings: RouterSettings, fleet: Fleet, clock: Clock, is_settled: Callable[[], bool]) -> None:
        self._settings = settings
        self._fleet = fleet
        self._clock = clock
        self._is_settled = is_settled
        self._queues: dict[str, FairQueue[Request]] = {}
        self._estimates: dict[str, WaitEstimate] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def models(self) -> Iterator[str]:
        """Models that somebody waits for."""
        return (model for model, queue in list(self._queues.items()) if len(queue))

    def check(self, asked: Submission) -> None:
        """Raises ModelNotFound or Overloaded when the request cannot be taken on."""
        self.check_model(asked.model)
        queue = self._queue(asked.model)
        wait_s = self._estimates[asked.model].wait_s(len(queue) + 1) if len(queue) else 0.0
        retry_after_s = max(1.0, wait_s or 0.0)
        if len(self) >= self._settings.max_queued:
            raise Overloaded(f"{len(self)} requests are waiting already", retry_after_s=retry_after_s)
        if wait_s is not None and wait_s > min(asked.deadline_s, self._settings.queue_s):
            raise Overloaded(f"the queue is about {wait_s:.0f} s long", retry_after_s=retry_after_s)

    def check_model(self, model: str) -> None:
        """Raises ModelNotFound, naming those served, when it is certain that nobody serves it.

        Without any worker nothing is: workers are starting, or all are lost, and the request waits for them.
        """
        served = self._fleet.models
        if served and model not in served and self._is_settled():
            raise ModelNotFound(
                f"model {model!r} is not served here; served: {', '.join(sorted(served))}", param="model"
            )

    def push(self, request: Request) -> None:
        """A new request waits for its turn."""
        self._queue(request.asked.model).push(request, request.asked.tenant, request.asked.priority)

    def push_front(self, request: Request) -> None:
        """A request that was placed before comes first."""
        self._queue(request.asked.model).push_front(request)

    def peek(self, model: str) -> Request | None:
        return self._queue(model).peek()

    def pop(self, model: str) -> None:
        """The request that `peek` shows is placed."""
        queue = self._queue(model)
        others_wait = len(queue) > 1
        queue.pop()
        self._estimates[model].left(self._clock.time(), others_wait=others_wait)

    def remove(self, request: Request) -> None:
        """It does not wait any more."""
        self._queue(request.asked.model).remove(request, request.asked.tenant, request.asked.priority)

    def _queue(self, model: str) -> FairQueue[Request]:
        if model not in self._queues:
            self._queues[model] = FairQueue()
            self._estimates[model] = WaitEstimate()
        return self._queues[model]
