"""Whether a worker should take a prefix from another one rather than compute it, and from whom. Pure.

The price of a pull is that worker's measured wait for the first byte plus its measured link; the price of computing is
its measured rate. What is pulled is whole blocks that the source holds and the worker does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton.router.policy_facts import RequestFacts, WorkerFacts

HOLDERS = 4  # of each kind, the workers that hold most of the prompt are looked at


@dataclass(frozen=True, slots=True)
class Pull:
    """Take the first `tokens` of the request from worker `source`, as far as they are not here: it takes `seconds`, and
    saves so many of computing, those not counted."""

    source: str
    tokens: int
    seconds: float
    saved_s: float = 0.0


class Holders:
    """The workers that a request's prefix may be pulled from, by what their pools hold of it."""

    def __init__(self, request: RequestFacts, fleet: Sequence[WorkerFacts], cached_tokens: Mapping[str, int]) -> None:
        self._request = request
        self._best: dict[tuple[str, str], list[tuple[int, WorkerFacts]]] = defaultdict(list)
        for worker in fleet:
            held = cached_tokens.get(worker.worker_id, 0)
            if held and worker.transport and worker.worker_id not in request.failed:
                self._best[worker.fingerprint, worker.transport].append((held, worker))
        for holders in self._best.values():
            holders.sort(key=lambda item: (-item[0], item[1].penalty_s, item[1].requests, item[1].worker_id))
            del holders[HOLDERS:]

    def best(self, worker: WorkerFacts, cached: int) -> Pull | None:
        """The pull that saves most time, None when computing is faster. `cached`: tokens that the worker holds."""
        best, most_s = None, 0.0
        for held, source in self._best.get((worker.fingerprint, worker.transport), ()):
            end = min(held, self._request.tokens - 1) // worker.page_size * worker.page_size
            here = cached // worker.page_size * worker.page_size
            if source.worker_id == worker.worker_id or end <= here:
                continue
            seconds = worker.pull_s(end, here) + source.penalty_s
            saved_s = (end - here) / worker.extend_rate - seconds
            if saved_s > most_s:
                best, most_s = Pull(source.worker_id, end, seconds, saved_s), saved_s
        return best
