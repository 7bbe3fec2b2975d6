"""The life of requests: queued, placed, first token, handoff, decode, and again from where it was when a worker fails.

All callbacks and timers run on one thread, the event loop's; nothing here waits. The caller of a request sees its
tokens once and in order, whatever becomes of the attempts: a new one starts from the prompt and all tokens emitted, and
what an abandoned one still says is dropped at the link. The router owns the total deadline; each phase has its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from baton.core.errors import (
    AttemptFailed,
    BatonError,
    DeadlineExceeded,
    HandoffFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTooLarge,
    Unavailable,
)
from baton.router import metrics
from baton.router.admission import Admission
from baton.router.deadlines import Deadlines
from baton.router.fleet import Fleet
from baton.router.placer import Placer
from baton.router.policy import NoPlacement, Placement
from baton.router.ports import Finish, Handoff, Row, WorkerInfo
from baton.router.request import Clock, Phase, Request, Run, Sink, Submission, Ticket
from baton.router.settings import RouterSettings

log = structlog.get_logger(__name__)

# The caller's mistake, or the end of its time: no other worker would say otherwise.
_FINAL = (InvalidRequest, ModelNotFound, RequestTooLarge, DeadlineExceeded)
_PUMP_PERIOD_S = 0.005  # while requests wait, the policy is asked this often at most


class Lifecycle:
    """All requests of this router. Implements FleetListener and RunEvents."""

    def __init__(
        self,
        settings: RouterSettings,
        fleet: Fleet,
        placer: Placer,
        clock: Clock,
        is_settled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._placer = placer
        self._clock = clock
        self._admission = Admission(settings, fleet, clock, is_settled)
        self._deadlines = Deadlines(
            settings,
            clock,
            knows_model=lambda model: model in fleet.models,
            on_total=self._on_total_deadline,
            on_phase=self._on_phase_deadline,
        )
        self._requests: dict[str, Request] = {}
        self._pump_due = False
        self.idle = asyncio.Event()  # set while no request is in flight
        self.idle.set()
        fleet.listener = self

    # --- callers ------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that are not over."""
        return len(self._requests)

    @property
    def queued(self) -> int:
        """Those of them that wait for a placement."""
        return len(self._admission)

    def submit(self, asked: Submission, sink: Sink) -> Request:
        """Take a request on: its events go to `sink`, some of them perhaps before this returns.

        Raises InvalidRequest, ModelNotFound or Overloaded; then the sink hears nothing.
        """
        self._supersede(asked)
        self._admission.check(asked)
        request = Request.of(asked, sink, self._clock.time())
        self._requests[asked.request_id] = request
        self.idle.clear()
        if request.remaining <= 0:
            self._finish(request, Finish.LENGTH)
            return request
        self._admission.push(request)
        self._deadlines.enter(request, Phase.QUEUED)
        self._pump(asked.model)
        return request

    def cancel(self, request: Request) -> None:
        """The caller does not want it any more. Its sink hears of it; requests that are over are left alone."""
        if not request.is_over:
            self._finish(request, Finish.CANCELLED)

    def _supersede(self, asked: Submission) -> None:
        """A caller that lost its stream may be back before we notice that the stream broke."""
        known = self._requests.get(asked.request_id)
        if known is None:
            return
        if asked.first_attempt <= known.attempt_number:
            raise InvalidRequest(f"request_id {asked.request_id!r} is in use", param="request_id")
        self.cancel(known)

    # --- placement ----------------------------------------------------------------------------------------------

    def on_worker_connected(self, info: WorkerInfo) -> None:
        self._placer.prepare(info)

    def on_fleet_changed(self) -> None:
        if not self._pump_due and len(self._admission):
            self._pump_due = True
            self._clock.call_at(self._clock.time() + _PUMP_PERIOD_S, self._pump_all)

    def _pump_all(self) -> None:
        self._pump_due = False
        for model in self._admission.models:
            self._pump(model)

    def _pump(self, model: str) -> None:
        """Place waiting requests as long as there is room."""
        while (request := self._admission.peek(model)) is not None:
            placement = self._placer.choose(request)
            if isinstance(placement, NoPlacement):
                break
            self._admission.pop(model)
            self._start(request, placement)
        self._set_gauges()

    def _start(self, request: Request, placement: Placement) -> None:
        """Send a new attempt to its worker, or to both at once."""
        waited_s = self._clock.time() - request.phase_since
        request.usage.queued_s += waited_s
        metrics.QUEUE_S.observe(waited_s)
        self._placer.start(request, placement, self)
        self._deadlines.enter(request, Phase.PREFILL)

    # --- what workers say (RunEvents) ---------------------------------------------------------------------------

    def on_row(self, request: Request, run: Run, row: Row, *, is_decode: bool) -> None:
        ready = run.take(row, is_decode=is_decode)
        self._advance(request, run)
        for item in ready:
            if request.run is run:
                self._deliver(request, run, item)
        if request.run is run and run.has_first_token and run.decode_failure is not None:
            self._again(request, run, run.decode_failure, _blamed(run, run.decode_failure, run.decode))

    def on_admitted(self, request: Request, cached_tokens: int, *, is_decode: bool) -> None:
        if not is_decode:
            request.usage.cached_tokens = min(cached_tokens, request.usage.prompt_tokens)

    def on_handoff(self, request: Request, run: Run, handoff: Handoff) -> None:
        request.usage.handoff = handoff
        run.is_verified = True
        self._advance(request, run)

    def on_failed(self, request: Request, run: Run, error: BatonError, *, is_decode: bool) -> None:
        if isinstance(error, _FINAL):
            self._fail(request, error)
        elif is_decode and not run.has_first_token:
            # Prefill goes on: its first token is progress, its cache serves the next attempt, and where that token
            # ends the request, decode failed only because prefill had nothing to hand over.
            run.decode_failure = error
            run.held.clear()
        else:
            self._again(request, run, error, _blamed(run, error, run.decode if is_decode else run.prefill))

    def _advance(self, request: Request, run: Run) -> None:
        """First token, then verified handoff: after both, prefill has nothing more to do with the request."""
        if not run.has_first_token:
            return
        if not run.is_verified:
            if request.phase is Phase.PREFILL:
                self._deadlines.enter(request, Phase.HANDOFF)
            return
        if run.decode is not None and run.prefill is not None:
            run.prefill.port.forget(run.prefill.ref)
            run.prefill = None
        if request.phase is not Phase.DECODE:
            self._deadlines.enter(request, Phase.DECODE)

    def _deliver(self, request: Request, run: Run, row: Row) -> None:
        """Pass new tokens on, and end the request when they are the last."""
        if row.token_ids:
            self._observe_tokens(request)
            request.tokens += row.token_ids
            request.usage.completion_tokens += len(row.token_ids)
            request.has_prompt_logprobs |= bool(row.prompt_logprobs)
        if row.token_ids or row.vector:
            request.sink.on_tokens(run.attempt.n, row)
        if row.finish is Finish.CANCELLED:
            self._again(request, run, AttemptFailed("the worker cancelled the attempt"), (run.decode or run.prefill,))
        elif row.finish is not None:
            self._finish(request, row.finish)

    def _observe_tokens(self, request: Request) -> None:
        now = self._clock.time()
        if request.last_token_at is not None:
            metrics.INTER_TOKEN_S.observe(now - request.last_token_at)
        elif not request.asked.emitted:
            metrics.TTFT_S.observe(now - request.arrived_at)
            request.trace.first_token()
        request.last_token_at = now

    # --- another attempt ------------------------------------------------------------------------------------------

    def _again(self, request: Request, run: Run, error: BatonError, blamed: Iterable[Ticket | None]) -> None:
        """Give the attempt up and make another: from the prompt and all tokens emitted so far."""
        request.trace.failed(error)
        self._placer.abandon(request)
        for ticket in blamed:
            if ticket is not None:
                request.failed[ticket.worker_id] += 1
                self._fleet.strike(ticket.worker_id)
        log.warning(
            "attempt failed",
            request_id=request.request_id,
            attempt=run.attempt.n,
            code=error.code,
            error=error.message,
            emitted_tokens=request.usage.completion_tokens,
        )
        tried = request.usage.attempts
        if tried >= self._settings.max_attempts:
            message = f"gave up after {tried} attempts; the last: {error.message}"
            self._fail(request, Unavailable(message, retry_after_s=1.0))
            return
        metrics.RETRIES.labels(reason=error.code).inc()
        if tried == 1:
            self._requeue(request)
        else:
            self._deadlines.enter(request, Phase.PAUSED)

    def _requeue(self, request: Request) -> None:
        self._admission.push_front(request)
        self._deadlines.enter(request, Phase.QUEUED)
        self._pump(request.asked.model)

    # --- ends -----------------------------------------------------------------------------------------------------

    def _finish(self, request: Request, finish: Finish) -> None:
        self._over(request, finish.value)
        if finish is not Finish.CANCELLED:
            metrics.PROMPT_TOKENS.inc(request.usage.prompt_tokens)
            metrics.CACHED_TOKENS.inc(request.usage.cached_tokens)
        stop_token_id = request.tokens[-1] if finish is Finish.STOP and request.asked.pooling is None else 0
        request.sink.on_finished(request.attempt_number, finish, stop_token_id, request.usage)

    def _fail(self, request: Request, error: BatonError) -> None:
        self._over(request, error.code, error.message)
        request.sink.on_error(request.attempt_number, error)

    def _over(self, request: Request, outcome: str, error: str = "") -> None:
        if request.phase is Phase.QUEUED:
            self._admission.remove(request)
        self._placer.abandon(request)
        self._deadlines.enter(request, Phase.OVER)
        request.trace.over(outcome, request.usage.completion_tokens, error)
        del self._requests[request.request_id]
        if not self._requests:
            self.idle.set()
        metrics.REQUESTS.labels(outcome=outcome).inc()
        metrics.COMPLETION_TOKENS.inc(request.usage.completion_tokens - len(request.asked.emitted))
        self._set_gauges()
        log.info(
            "request over",
            request_id=request.request_id,
            outcome=outcome,
            attempts=request.usage.attempts,
            prefill=request.usage.prefill_worker,
            decode=request.usage.decode_worker,
            completion_tokens=request.usage.completion_tokens,
            seconds=round(self._clock.time() - request.arrived_at, 4),
        )

    def _set_gauges(self) -> None:
        metrics.IN_FLIGHT.set(self.in_flight)
        metrics.QUEUED.set(self.queued)

    # --- time -----------------------------------------------------------------------------------------------------

    def _on_total_deadline(self, request: Request) -> None:
        message = f"the request's time, {request.asked.deadline_s:g} s, is over (phase: {request.phase.value})"
        self._fail(request, DeadlineExceeded(message))

    def _on_phase_deadline(self, request: Request, waited_s: float) -> None:
        run = request.run
        if request.phase is Phase.PAUSED:
            self._requeue(request)
        elif run is None:
            self._not_placed(request, waited_s)
        elif request.phase is Phase.PREFILL:
            self._again(request, run, AttemptFailed(f"no first token within {waited_s:.1f} s"), (run.prefill,))
        elif request.phase is Phase.HANDOFF:
            error = HandoffFailed(f"the KV cache did not arrive within {waited_s:.1f} s")
            self._again(request, run, error, (run.prefill, run.decode))
        else:
            stalled = AttemptFailed(f"no token for {self._settings.stall_s:g} s")
            self._again(request, run, stalled, (run.decode or run.prefill,))

    def _not_placed(self, request: Request, waited_s: float) -> None:
        """Waited too long for a placement, or for somebody to name the model."""
        try:
            self._admission.check_model(request.asked.model)
        except ModelNotFound as error:
            self._fail(request, error)
            return
        if waited_s < self._settings.queue_s:
            return
        placement = self._placer.choose(request)
        if isinstance(placement, NoPlacement) and not placement.busy:
            self._fail(request, Unavailable(f"{placement.reason} (waited {waited_s:.0f} s)", retry_after_s=5.0))
        else:
            self._fail(request, Overloaded(f"no worker had room within {waited_s:.0f} s", retry_after_s=5.0))


def _blamed(run: Run, error: BatonError, ticket: Ticket | None) -> tuple[Ticket | None, ...]:
    """Whom a failure speaks against: a handoff has two ends."""
    return (run.prefill, run.decode) if isinstance(error, HandoffFailed) else (ticket,)
