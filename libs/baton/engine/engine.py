"""The engine: takes requests, and with every step computes a batch of their tokens. One thread calls all of it.

A step is: schedule, run, sample, commit. Overlapped, the parts of three steps go on at once:

    engine's thread    schedule n + 1   commit n - 1 and tell of it   schedule n + 2   commit n ...
    lane               run and sample n .......................    run and sample n + 1 ........

so the lane, a thread or a GPU's stream, has its next step at hand when it ends one. Tokens pass between steps in a pool
on the device; the host sees them one step late. A request that turns out to have ended has then computed one token too
many, which nobody is told, in pages that nobody else gets before that step has ended.
Knows nothing of networks, tokenizers or other workers; handoffs reach it as `activate` and `release`, and leave it
through the listener.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import structlog
import torch

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError, InternalError, InvalidRequest
from baton.core.pooling import Task, check_task
from baton.core.tiers import Tier
from baton.engine.announce import Announcer
from baton.engine.api import (
    BoundedCounts,
    EngineLoad,
    EngineRequest,
    HandoffListener,
    Loan,
    Stage,
    StepOutput,
)
from baton.engine.batch import ModelRunner, StepBatch
from baton.engine.batching import BatchBuilder
from baton.engine.clipping import CLIPPING
from baton.engine.committing import Committer
from baton.engine.cuda.lane import StreamLane
from baton.engine.drawing import Draws, LaunchedDraws
from baton.engine.grammar.masks import MaskThread, StepMasks
from baton.engine.intake import Limits
from baton.engine.lane import CallersLane, Lane, Started, ThreadLane
from baton.engine.ledger import PageLedger
from baton.engine.meter import LoadMeter
from baton.engine.plan import EngineConfig, StepPlan
from baton.engine.pool import KvPool
from baton.engine.pooling.pooler import Pooled
from baton.engine.pooling.step import LaunchedPools, PoolingModel, Pools
from baton.engine.request import Phase, RequestState
from baton.engine.scheduler import Scheduler

log = structlog.get_logger(__name__)

PROMPT_LOGITS_BYTES = 64 << 20  # of one step; a prompt whose logits are all wanted is computed in chunks that fit


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a step needs on the device. `late`: where tokens of the step before belong in the batch, and their
    places in the token pool."""

    batch: StepBatch
    late: tuple[torch.Tensor, torch.Tensor] | None
    draws: Draws
    pools: Pools | None
    on_layer: Callable[[int], None] | None


@dataclass(frozen=True, slots=True)
class Launched:
    """Results of a step, once it has ended. `pools`: None when it had no pooling requests."""

    draws: LaunchedDraws
    pools: LaunchedPools | None


@dataclass(frozen=True, slots=True)
class Flight:
    """A step under way."""

    plan: StepPlan
    launched: Started[Launched]
    started_s: float


class EngineCore:
    """Implements baton.engine.api.StepEngine over a model runner and a pool, both of which it uses alone from now on.

    Raises ConfigError when pool and runner disagree on the layout, or the limits cannot work.
    """

    def __init__(
        self,
        runner: ModelRunner,
        pool: KvPool,
        config: EngineConfig | None = None,
        listener: HandoffListener | None = None,
        clock: Callable[[], float] = time.monotonic,
        lane: Lane | None = None,
        pooling: PoolingModel | None = None,
    ) -> None:
        """`listener` makes this an engine that takes OFFER requests. `clock` counts seconds from any start.
        `lane` is where steps run; None: on the GPU's stream, or on a CPU on a thread of its own if the config says
        overlap, else on the caller's. `pooling`: the runner, where it can answer pooling requests too."""
        config = config or EngineConfig()
        if runner.layout != pool.layout:
            raise ConfigError(f"the pool is laid out as {pool.layout}, the model needs {runner.layout}")
        self._runner = runner
        self._pooling = pooling
        self._clock = clock
        self._page_size = pool.layout.page_size
        device = pool.tensor.device
        self._overlap = config.overlaps(device.type)
        self._ledger = PageLedger(pool.allocator, self._page_size, pool.layout, config.step_tokens(self._overlap))
        self._limits = Limits(
            runner.vocab_size, runner.max_context_tokens, self._ledger.most_blocks, pool.layout.page_size
        )
        logprob_chunk_tokens = PROMPT_LOGITS_BYTES // (4 * runner.vocab_size)
        self._scheduler = Scheduler(self._ledger, config, logprob_chunk_tokens)
        self._committer = Committer(self._scheduler, runner, device)
        self._lane = lane or _lane(device, self._overlap)
        self._flight: Flight | None = None
        self._landed_s = -math.inf
        self._batches = BatchBuilder(self._page_size, device, pool.layout)
        self._tokens = torch.zeros(config.max_running, dtype=torch.int64, device=device)  # the token pool
        self._announcer = Announcer(listener, pool.allocator, pool.layout) if listener is not None else None
        self._mask_thread: MaskThread | None = None
        self._meter = LoadMeter()
        self._counted = BoundedCounts()  # when the last step ended
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
        pooled = self._pooled(request)
        self._limits.check(request)
        if request.sampling.structure is not None and request.grammar is None:
            raise InvalidRequest("this engine compiles no grammars: its output cannot be structured", param="structure")
        self._arrivals += 1
        most = self._limits.request_tokens
        self._scheduler.submit(RequestState.of(request, self._arrivals, self._clock(), self._page_size, most, pooled))

    def _pooled(self, request: EngineRequest) -> Pooled | None:
        """What a pooling request gathers. Raises InvalidRequest for a task that is none of the model's."""
        if self._pooling is None:
            if request.pooling is not None:
                raise InvalidRequest("this engine generates only", param="task")
            return None
        pooler = self._pooling.pooler
        if request.pooling is None:
            check_task(Task.GENERATE, pooler.tasks, "this model")
            return None
        pooler.check(request.pooling)
        return Pooled(request.pooling, pooler.pooling(request.pooling))

    def activate(self, attempt: Attempt, first_token: int) -> None:
        """See StepEngine.activate. No effect on an unknown attempt; a cancelled one ends, and its pages stay cached.

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
        """See StepEngine.cancel."""
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
        """See StepEngine.release. The attempt is over, computing or not. No effect on an unknown attempt, nor on one
        whose pages nobody else may use: RUN_ALL, or a FETCH that was activated.

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

    def pulled(self, attempt: Attempt, tokens: int) -> None:
        """See StepEngine.pulled. No effect on an unknown attempt.

        Raises InternalError when the attempt pulls nothing, or `tokens` are not whole pages of what it pulls.
        """
        request = self._scheduler.find(attempt)
        if request is None:
            return
        if not request.pull_blocks or request.phase not in (Phase.FETCHING, Phase.HELD):
            raise InternalError(f"attempt {attempt} pulls nothing")
        if tokens % self._page_size or not 0 <= tokens <= request.pull_blocks * self._page_size:
            raise InternalError(f"attempt {attempt} pulls {request.pull_blocks} blocks, not {tokens} tokens")
        self._scheduler.pulled(request, tokens)

    def lend(self, attempt: Attempt, block_hashes: Sequence[bytes]) -> Loan:
        """See StepEngine.lend."""
        return self._ledger.outgoing.lend(attempt, block_hashes)

    def use_tier(self, free_pages: int) -> None:
        """See StepEngine.use_tier."""
        self._ledger.outgoing.use_tier(free_pages)

    def moved(self, batch: int) -> None:
        """See StepEngine.moved. No effect on an unknown batch."""
        self._scheduler.moved(batch)

    def tiered(self, block_hashes: Sequence[bytes], tier: Tier | None) -> None:
        """See StepEngine.tiered."""
        self._ledger.cache.place(block_hashes, tier)

    def take_back(self, attempt: Attempt) -> None:
        """See StepEngine.take_back."""
        self._scheduler.take_back(attempt)

    def step(self) -> StepOutput:
        """Schedule, run, sample, commit. A step that raises fails the requests of its batch and nobody else.

        Overlapped, this commits the step that the last call has started, after starting the next one.
        """
        output = StepOutput()
        self._flight = self._turn(self._flight, output)
        if moved_out := self._ledger.outgoing.move_out():
            output.moved_out.append(moved_out)
        output.stored_blocks, output.removed_blocks, output.tiered_blocks = self._ledger.cache.drain_events()
        counted, self._counted = self._counted, self._ledger.bounded.counts
        output.bounded = self._counted.since(counted)
        return output

    def _turn(self, last: Flight | None, output: StepOutput) -> Flight | None:
        """Start the next step, commit `last`; returns the step that is under way afterwards."""
        started_s = self._clock()
        plan = self._scheduler.plan(started_s, last is not None)
        if plan is None:
            self._land(last, output)
            last = None
            plan = self._scheduler.plan(started_s)
            assert plan is not None, "with nothing under way there is always a plan"
        output.admitted, output.reserved, output.preempted = plan.admitted, plan.reserved, plan.preempted
        flight = self._depart(plan, started_s, output)
        self._land(last, output)
        if self._overlap:
            return flight
        self._land(flight, output)
        return None

    @property
    def has_work(self) -> bool:
        """See StepEngine.has_work. Also True while a step is under way, or block events wait to be told by the next."""
        return self._flight is not None or self._scheduler.has_work or self._ledger.cache.has_events

    def close(self) -> None:
        """See StepEngine.close."""
        self._lane.close()
        if self._mask_thread is not None:
            self._mask_thread.close()

    def load(self) -> EngineLoad:
        """O(1)."""
        return EngineLoad(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            free_pages=self._ledger.allocator.free_pages,
            evictable_pages=self._ledger.evictable_pages,
            lent_pages=self._ledger.lent_pages,
            waiting_extend_tokens=self._scheduler.owed_tokens,
            extend_tokens_per_s=self._meter.extend_tokens_per_s,
            decode_step_s=self._meter.decode_step_s,
            tier_blocks=self._ledger.cache.host_blocks,
            cached_pages=self._ledger.cached_pages,
            snapshots=self._ledger.bounded.cached_snapshots,
        )

    def audit(self) -> None:
        """Raise InternalError unless every page has exactly one owner and every count is right. Slow: for tests."""
        self._ledger.audit(self._scheduler.live)
        self._scheduler.audit()

    def _depart(self, plan: StepPlan, started_s: float, output: StepOutput) -> Flight | None:
        """Prepare the step and have it run."""
        if not plan.rows:
            return None
        try:
            prepared = self._prepare(plan)
        except Exception as error:
            self._committer.fail_step(plan, error, output)
            return None
        self._ledger.depart()
        return Flight(plan, self._lane.start(lambda: self._run(prepared)), started_s)

    def _prepare(self, plan: StepPlan) -> Prepared:
        tell = self._announcer.begin(plan) if self._announcer is not None else None
        on_layer = self._lane.when_done(tell) if tell is not None else None
        batch = self._batches.build(plan.rows)
        late = self._batches.late_tokens(plan.rows)  # reads the places of the step before: `Draws.of` gives new ones
        draws = Draws.of(plan.rows, self._runner.eos_token_ids, self._runner.vocab_size, self._tokens.device)
        return Prepared(batch, late, draws, Pools.of(plan.rows), on_layer)

    @torch.inference_mode()
    def _run(self, step: Prepared) -> Launched:
        """All that a step does on the device. Runs on the lane; tokens pass from step to step in the token pool."""
        if step.late is not None:
            at, places = step.late
            step.batch.token_ids[at] = self._tokens[places]
        masks = self._start_masks(step.draws)
        logits, pools = self._forward(step)
        launched = step.draws.launch(logits, masks.result() if masks is not None else None)
        self._tokens[: len(launched.token_ids)] = launched.token_ids
        return Launched(launched, pools)

    def _forward(self, step: Prepared) -> tuple[torch.Tensor, LaunchedPools | None]:
        """Logits of the rows that draw, and what pools, if anything does."""
        if step.pools is None or self._pooling is None:
            return self._runner.forward(step.batch, step.on_layer), None
        hidden = self._pooling.hidden(step.batch, step.on_layer)
        pools = step.pools.launch(hidden, self._pooling.pooler)
        return self._pooling.logits(step.pools.others(hidden)), pools

    def _start_masks(self, draws: Draws) -> Future[StepMasks] | None:
        if not draws.masks:
            return None
        if self._mask_thread is None:
            self._mask_thread = MaskThread(self._runner.vocab_size, self._tokens.device)
        return self._mask_thread.start(draws.masks, self._tokens)

    def _land(self, flight: Flight | None, output: StepOutput) -> None:
        """Wait for the step, and commit it."""
        if flight is None:
            return
        plan = flight.plan
        output.extend_tokens += plan.extend_tokens
        output.decode_rows += plan.decode_rows
        try:
            launched = flight.launched.result()
            drawn = launched.draws.read()
            answers = launched.pools.read() if launched.pools is not None else {}
        except Exception as error:
            self._ledger.land()
            self._committer.fail_step(plan, error, output)
        else:
            self._ledger.land()
            self._committer.commit(plan, drawn, answers, output)
        output.clipped += CLIPPING.taken()
        now = self._clock()
        duration_s = now - max(flight.started_s, self._landed_s)
        self._landed_s = now
        output.duration_s += duration_s
        self._meter.observe(plan.extend_tokens, plan.decode_rows, duration_s)


def _lane(device: torch.device, overlap: bool) -> Lane:
    if device.type == "cuda":
        return StreamLane()
    return ThreadLane() if overlap else CallersLane()
