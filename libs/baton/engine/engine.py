"""The engine: takes requests, and with every step computes a batch of their tokens. One thread calls all of it.

A step is: schedule, run, sample, commit. Each part gets what it needs from the one before by value, and the batch's
tensors belong to their step alone, so that a loop which prepares step n + 1 while n runs needs no other engine.
Knows nothing of networks, tokenizers or other workers; handoffs reach it as `activate` and `release`, and leave it
through the listener.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import torch

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError, InternalError, InvalidRequest
from baton.engine.announce import Announcer
from baton.engine.api import (
    EngineLoad,
    EngineRequest,
    Failed,
    HandoffListener,
    RowOutput,
    Stage,
    StepOutput,
    TokenLogprob,
)
from baton.engine.batch import ModelRunner
from baton.engine.batching import build_batch
from baton.engine.drawing import Drawn, draw
from baton.engine.intake import Limits
from baton.engine.ledger import PageLedger
from baton.engine.meter import LoadMeter
from baton.engine.plan import EngineConfig, PlannedRow, StepPlan
from baton.engine.pool import KvPool
from baton.engine.request import Phase, RequestState
from baton.engine.scheduler import Scheduler

log = structlog.get_logger(__name__)

PROMPT_LOGITS_BYTES = 64 << 20  # of one step; a prompt whose logits are all wanted is computed in chunks that fit


class EngineCore:
    """Implements baton.engine.api.Engine over a model runner and a pool, both of which it uses alone from now on.

    Raises ConfigError when pool and runner disagree on the layout, or the limits cannot work.
    """

    def __init__(
        self,
        runner: ModelRunner,
        pool: KvPool,
        config: EngineConfig | None = None,
        listener: HandoffListener | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`listener` makes this an engine that takes OFFER requests. `clock` counts seconds from any start."""
        if runner.layout != pool.layout:
            raise ConfigError(f"the pool is laid out as {pool.layout}, the model needs {runner.layout}")
        self._runner = runner
        self._clock = clock
        self._page_size = pool.layout.page_size
        self._limits = Limits(
            runner.vocab_size, runner.max_context_tokens, pool.allocator.usable, pool.layout.page_size
        )
        self._ledger = PageLedger(pool.allocator, self._page_size)
        logprob_chunk_tokens = PROMPT_LOGITS_BYTES // (4 * runner.vocab_size)
        self._scheduler = Scheduler(self._ledger, config or EngineConfig(), logprob_chunk_tokens)
        self._announcer = (
            Announcer(listener, pool.allocator, pool.layout.layers, self._page_size) if listener is not None else None
        )
        self._meter = LoadMeter()
        self._arrivals = 0
        runner.bind_pool(pool.tensor)

    @property
    def max_context_tokens(self) -> int:
        """Most tokens, prompt and output, that one request can have: what model and pool allow."""
        return self._limits.request_tokens

    def submit(self, request: EngineRequest) -> None:
        """Queue a request; see Engine.submit. Raises InvalidRequest for an attempt that is under way already, too."""
        if self._scheduler.find(request.attempt) is not None:
            raise InvalidRequest(f"attempt {request.attempt} is under way already", param="attempt")
        if request.stage is Stage.OFFER and self._announcer is None:
            raise InvalidRequest("this engine hands nothing over: it takes no request of stage offer", param="stage")
        self._limits.check(request)
        self._arrivals += 1
        self._scheduler.submit(RequestState.of(request, self._arrivals, self._clock(), self._page_size))

    def activate(self, attempt: Attempt, first_token: int) -> None:
        """See Engine.activate. No effect on an unknown attempt; a cancelled one ends, and its pages stay cached.

        Raises InternalError when the attempt awaits no handoff, or `first_token` is not in the vocabulary.
        """
        request = self._scheduler.find(attempt)
        if request is None:
            return
        if request.stage is not Stage.FETCH or request.phase is Phase.WAITING:
            raise InternalError(f"attempt {attempt} cannot be activated: it awaits no handoff")
        if not 0 <= first_token < self._limits.vocab_size:
            raise InternalError(f"attempt {attempt} was handed over with token {first_token}, not in the vocabulary")
        if request.phase is Phase.HELD:
            self._scheduler.filled(request)
            self._scheduler.end(request)
            return
        self._scheduler.activate(request, first_token)

    def cancel(self, attempt: Attempt) -> bool:
        """See Engine.cancel."""
        request = self._scheduler.find(attempt)
        if request is None:
            return True
        if request.phase is Phase.HELD:
            return False
        if request.announced or request.phase is Phase.FETCHING:
            self._scheduler.hold(request)
            return False
        self._scheduler.end(request)
        return True

    def release(self, attempt: Attempt, *, valid: bool) -> None:
        """See Engine.release. The attempt is over, computing or not. No effect on an unknown attempt, nor on one whose
        pages nobody else may use: RUN_ALL, or a FETCH that was activated.

        Blocks that this engine computed itself and shared already stay cached even when not `valid`.
        """
        request = self._scheduler.find(attempt)
        if request is None or request.stage is Stage.RUN_ALL:
            return
        if valid and request.stage is Stage.FETCH and request.phase is not Phase.WAITING:
            self._scheduler.filled(request)
        if valid:
            self._ledger.publish(request, unlease=True)
        self._scheduler.end(request)

    def step(self) -> StepOutput:
        """Schedule, run, sample, commit. A step that raises fails the requests of its batch and nobody else."""
        started_s = self._clock()
        plan = self._scheduler.plan(started_s)
        output = _output_of(plan)
        if plan.rows:
            try:
                logits = self._run(plan)
                drawn = draw(plan.rows, logits, self._runner.eos_token_ids)
            except Exception as error:
                log.exception("step failed", requests=[str(row.request.attempt) for row in plan.rows])
                self._fail(plan.rows, _as_internal(error), output)
            else:
                self._commit(plan, drawn, output)
            output.duration_s = self._clock() - started_s
            self._meter.observe(plan.extend_tokens, plan.decode_rows, output.duration_s)
        output.stored_blocks, output.removed_blocks = self._ledger.cache.drain_events()
        return output

    @property
    def has_work(self) -> bool:
        """See Engine.has_work. Also True while block events wait to be told by the next step."""
        return self._scheduler.has_work or self._ledger.cache.has_events

    def load(self) -> EngineLoad:
        """O(1)."""
        return EngineLoad(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            free_pages=self._ledger.allocator.free_pages,
            evictable_pages=self._ledger.cache.evictable_pages,
            lent_pages=self._ledger.lent_pages,
            waiting_extend_tokens=self._scheduler.owed_tokens,
            extend_tokens_per_s=self._meter.extend_tokens_per_s,
            decode_step_s=self._meter.decode_step_s,
        )

    def audit(self) -> None:
        """Raise InternalError unless every page has exactly one owner and every count is right. Slow: for tests."""
        self._ledger.audit(self._scheduler.live)
        self._scheduler.audit()

    def _run(self, plan: StepPlan) -> torch.Tensor:
        on_layer = self._announcer.begin(plan) if self._announcer is not None else None
        return self._runner.forward(build_batch(plan.rows, self._page_size), on_layer)

    def _commit(self, plan: StepPlan, drawn: Drawn, output: StepOutput) -> None:
        """Make the step's results part of its requests. Blocks are shared before a finished request lets go of them."""
        for index, row in enumerate(plan.rows):
            if index in drawn.failed:
                self._fail([row], drawn.failed[index], output)
                continue
            self._scheduler.computed(row)
            if row.request.prompt_logprobs is not None:
                row.request.prompt_logprobs += drawn.prompt_logprobs[index]
            if index in drawn.tokens:
                output.rows.append(self._emit(row.request, *drawn.tokens[index]))

    def _emit(self, request: RequestState, token_id: int, logprob: TokenLogprob | None) -> RowOutput:
        request.append(token_id)
        finish = request.finish(self._runner.eos_token_ids, self._limits.request_tokens)
        prompt_logprobs, request.prompt_logprobs = request.prompt_logprobs, None
        if request.stage is Stage.OFFER:
            self._scheduler.hold(request)
        elif finish is not None:
            self._scheduler.end(request)
        logprobs = [logprob] if logprob is not None else None
        return RowOutput(request.attempt, [token_id], finish, logprobs, prompt_logprobs)

    def _fail(self, rows: list[PlannedRow], error: InternalError, output: StepOutput) -> None:
        """End the rows' requests. Pages that were announced may be read elsewhere: they stay until `release`."""
        for row in rows:
            if row.request.announced:
                self._scheduler.hold(row.request)
            else:
                self._scheduler.end(row.request)
            output.failed.append(Failed(row.request.attempt, error))


def _output_of(plan: StepPlan) -> StepOutput:
    return StepOutput(
        admitted=plan.admitted,
        reserved=plan.reserved,
        extend_tokens=plan.extend_tokens,
        decode_rows=plan.decode_rows,
        preempted=plan.preempted,
    )


def _as_internal(error: Exception) -> InternalError:
    if isinstance(error, InternalError):
        return error
    wrapped = InternalError(f"a step of the engine failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
