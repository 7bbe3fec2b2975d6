"""Placements into practice: facts for the policy, assignments to workers, and the way back of what they say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from baton.core.attempt import Attempt
from baton.core.errors import BatonError, WorkerLost
from baton.core.pooling import Task
from baton.router import metrics
from baton.router.fleet import Fleet
from baton.router.index import PrefixIndex
from baton.router.policy import NoPlacement, Placement, place
from baton.router.policy_facts import Limits, RequestFacts
from baton.router.policy_pull import Pull
from baton.router.ports import Assignment, Fetch, Handoff, Offer, PullFrom, Row, RunAll, WorkerInfo
from baton.router.request import Clock, Request, Run, Ticket
from baton.router.settings import RouterSettings

log = structlog.get_logger(__name__)


class RunEvents(Protocol):
    """Hears what workers say about an attempt that is still the request's present one (lifecycle.py)."""

    def on_row(self, request: Request, run: Run, row: Row, *, is_decode: bool) -> None: ...

    def on_admitted(self, request: Request, cached_tokens: int, *, is_decode: bool) -> None: ...

    def on_handoff(self, request: Request, run: Run, handoff: Handoff) -> None: ...

    def on_failed(self, request: Request, run: Run, error: BatonError, *, is_decode: bool) -> None: ...


class Placer:
    """Chooses workers for a request and starts or abandons its attempts. Changes nothing else of the request."""

    def __init__(self, settings: RouterSettings, fleet: Fleet, index: PrefixIndex, clock: Clock) -> None:
        self._limits = Limits(settings.backlog_s, settings.local_extend_tokens, settings.inter_token_s)
        self._fleet = fleet
        self._index = index
        self._clock = clock
        self._turn = 0

    def prepare(self, info: WorkerInfo) -> None:
        """A worker has connected: begin to follow the index of its namespace."""
        self._index.mirror(info)

    def can_place(self, model: str) -> bool:
        """Whether some placement exists, were all workers idle."""
        tasks = self._fleet.tasks(model)
        wanted = [RequestFacts(model, 1, 2 if task is Task.GENERATE else 1, task=task) for task in tasks]
        facts = self._fleet.facts(model)
        answers = [place(request, facts, {}, self._limits, 0) for request in wanted]
        return any(isinstance(answer, Placement) or answer.busy for answer in answers)

    def choose(self, request: Request) -> Placement | NoPlacement:
        model = request.asked.model
        workers = [state.info for state in self._fleet.of_model(model)]
        cached = self._index.held(workers, request.names, request.tokens, request.asked)
        facts = RequestFacts(model, len(request.tokens), request.remaining, request.failed, request.asked.task)
        self._turn += 1
        return place(facts, self._fleet.facts(model), cached, self._limits, self._turn)

    def start(self, request: Request, placement: Placement, events: RunEvents) -> None:
        """Make the request's next attempt: send it to its worker, or to both at once."""
        request.usage.attempts += 1
        request.usage.prefill_worker = placement.prefill
        request.usage.decode_worker = placement.decode or placement.prefill
        attempt = Attempt(request.request_id, request.attempt_number)
        run = request.run = Run(attempt, placement, is_verified=placement.decode is None)
        metrics.ATTEMPTS.inc()
        metrics.PLACEMENTS.labels(reason=placement.reason).inc()
        metrics.PULLS.inc(placement.pull is not None)
        log.debug(
            "placed",
            request_id=attempt.request_id,
            attempt=attempt.n,
            prefill=placement.prefill,
            decode=placement.decode,
            reason=placement.reason,
            extend_tokens=placement.extend_tokens,
            predicted_s=round(placement.predicted_s, 4),
            pull_from=placement.pull.source if placement.pull else "",
        )
        request.trace.placed(attempt.n, placement)
        if placement.decode is None:
            run.prefill = self._assign(request, run, placement.prefill, RunAll(), events)
            return
        source = self._fleet.worker(placement.prefill)
        assert source is not None and source.info.agent is not None, "the policy pairs connected workers with agents"
        run.prefill = self._assign(request, run, placement.prefill, Offer(placement.decode), events)
        fetch = Fetch(source.info.worker_id, source.info.epoch, source.info.agent)
        run.decode = self._assign(request, run, placement.decode, fetch, events)

    def abandon(self, request: Request) -> None:
        """Cancel the present attempt, if any, wherever it still runs."""
        run, request.run = request.run, None
        for ticket in (run.prefill, run.decode) if run is not None else ():
            if ticket is not None:
                ticket.port.cancel(ticket.ref)

    def _assign(
        self, request: Request, run: Run, worker_id: str, stage: RunAll | Offer | Fetch, events: RunEvents
    ) -> Ticket:
        state = self._fleet.worker(worker_id)
        assert state is not None, "the policy chooses among connected workers"
        asked = request.asked
        is_decode = isinstance(stage, Fetch)
        assignment = Assignment(
            attempt=run.attempt,
            token_ids=request.tokens,
            prompt_tokens=len(asked.prompt),
            sampling=replace(asked.sampling, prompt_logprobs=None) if request.has_prompt_logprobs else asked.sampling,
            stage=stage,
            deadline_s=request.deadline_at - self._clock.time(),
            priority=asked.priority,
            cache_salt=asked.cache_salt,
            lora=asked.lora,
            traceparent=request.trace.traceparent,
            pull=self._pull(run.placement.decode_pull if is_decode else run.placement.pull),
            pooling=asked.pooling,
        )
        ref = state.port.assign(assignment, _Side(events, request, run, is_decode))
        pages = state.info.layout.pages_for(len(request.tokens) + 1)
        self._fleet.note_decision(worker_id, ref, 0 if is_decode else run.placement.extend_tokens, pages)
        return Ticket(worker_id, state.port, ref)

    def _pull(self, pull: Pull | None) -> PullFrom | None:
        source = self._fleet.worker(pull.source) if pull else None
        if pull is None or source is None or source.info.agent is None:
            return None
        return PullFrom(source.info.worker_id, source.info.epoch, source.info.agent, pull.tokens)


@dataclass(slots=True, eq=False)
class _Side:
    """AttemptListener of one worker's part of an attempt. Passes on what concerns the present attempt only."""

    events: RunEvents
    request: Request
    run: Run
    is_decode: bool

    def on_row(self, row: Row) -> None:
        if self._is_present():
            self.events.on_row(self.request, self.run, row, is_decode=self.is_decode)

    def on_admitted(self, cached_tokens: int, queued_s: float) -> None:
        if self._is_present():
            self.events.on_admitted(self.request, cached_tokens, is_decode=self.is_decode)

    def on_handoff(self, handoff: Handoff) -> None:
        if self._is_present():
            self.events.on_handoff(self.request, self.run, handoff)

    def on_failed(self, error: BatonError) -> None:
        if self._is_present():
            self.events.on_failed(self.request, self.run, error, is_decode=self.is_decode)

    def on_lost(self, reason: str) -> None:
        self.on_failed(WorkerLost(f"connection to the worker lost: {reason}"))

    def _is_present(self) -> bool:
        """False for attempts that were given up while this worker's other messages were being handled."""
        if self.request.run is self.run:
            return True
        metrics.STALE_FRAMES.inc()
        return False
