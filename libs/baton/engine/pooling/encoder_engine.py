"""The engine of models that read in both directions: queue, pack, run, answer. One thread calls all of it.

A text runs whole in one step, beside as many others as `max_batch_tokens` allows, by priority and arrival. Nothing is
kept between steps: no pages, no prefixes, no handoffs. Knows nothing of networks and tokenizers.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch

from baton.core.attempt import Attempt
from baton.core.errors import BatonError, InternalError, InvalidRequest
from baton.core.pooling import PoolingParams, Task, check_task
from baton.core.tiers import Tier
from baton.engine.api import (
    Admitted,
    EngineLoad,
    EngineRequest,
    Failed,
    Finish,
    Loan,
    RowOutput,
    StepOutput,
)
from baton.engine.intake import Limits
from baton.engine.meter import LoadMeter
from baton.engine.model.packed import PackedBatch
from baton.engine.plan import EngineConfig
from baton.engine.pooling.encoder_runner import EncoderRunner
from baton.engine.pooling.pooler import Pooled
from baton.engine.pooling.step import finite
from baton.engine.transfer import indices

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request in the queue, and when it came."""

    request: EngineRequest
    params: PoolingParams
    arrival: int
    arrived_s: float

    @property
    def rank(self) -> tuple[int, int]:
        return -self.request.priority, self.arrival

    @property
    def tokens(self) -> int:
        return len(self.request.token_ids)


class EncoderEngine:
    """Implements baton.engine.api.StepEngine over an encoder's runner, which it uses alone from now on."""

    def __init__(
        self,
        runner: EncoderRunner,
        config: EngineConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._config = config or EngineConfig()
        self._clock = clock
        self._limits = Limits(
            runner.vocab_size, runner.max_context_tokens, pages=runner.max_context_tokens, page_size=1
        )
        self._waiting: list[_Waiting] = []
        self._meter = LoadMeter()
        self._arrivals = 0

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises InvalidRequest when it can never run here, or its attempt is under way already."""
        if any(waiting.request.attempt == request.attempt for waiting in self._waiting):
            raise InvalidRequest(f"attempt {request.attempt} is under way already", param="attempt")
        if request.pooling is None:
            check_task(Task.GENERATE, self._runner.pooler.tasks, "this model")
            raise InternalError("an encoder does not generate")
        self._runner.pooler.check(request.pooling)
        self._limits.check(request)
        self._arrivals += 1
        waiting = _Waiting(request, request.pooling, self._arrivals, self._clock())
        insort(self._waiting, waiting, key=lambda one: one.rank)

    def cancel(self, attempt: Attempt) -> bool:
        """See StepEngine.cancel."""
        self._waiting = [waiting for waiting in self._waiting if waiting.request.attempt != attempt]
        return True

    def step(self) -> StepOutput:
        """Answer the first requests of the queue. A step that raises fails those of its batch and nobody else."""
        output = StepOutput()
        batch = self._take()
        if not batch:
            return output
        started_s = self._clock()
        output.admitted = [Admitted(one.request.attempt, 0, started_s - one.arrived_s) for one in batch]
        output.extend_tokens = sum(one.tokens for one in batch)
        try:
            self._answer(batch, output)
        except Exception as error:
            log.error("step failed", requests=[str(one.request.attempt) for one in batch], exc_info=error)
            wrapped = error if isinstance(error, BatonError) else InternalError(f"{type(error).__name__}: {error}")
            output.rows.clear()
            output.failed = [Failed(one.request.attempt, wrapped) for one in batch]
        output.duration_s = self._clock() - started_s
        self._meter.observe(output.extend_tokens, 0, output.duration_s)
        return output

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def load(self) -> EngineLoad:
        """Requests run within one step, so those that are there wait."""
        return EngineLoad(
            running=0,
            waiting=len(self._waiting),
            free_pages=0,
            evictable_pages=0,
            lent_pages=0,
            waiting_extend_tokens=sum(waiting.tokens for waiting in self._waiting),
            extend_tokens_per_s=self._meter.extend_tokens_per_s,
            decode_step_s=0.0,
        )

    def close(self) -> None:
        """There is no thread."""

    def _take(self) -> list[_Waiting]:
        """The next batch: at least one request, in order of rank; then sorted by length, as it is packed."""
        taken, room = 0, self._config.max_batch_tokens
        for waiting in self._waiting[: self._config.max_running]:
            room -= waiting.tokens
            if taken and room < 0:
                break
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return sorted(batch, key=lambda one: one.tokens)

    @torch.inference_mode()
    def _answer(self, batch: Sequence[_Waiting], output: StepOutput) -> None:
        pooler = self._runner.pooler
        hidden = self._runner.hidden(_packed(batch, self._runner.device))
        pooled = [Pooled(one.params, pooler.pooling(one.params)) for one in batch]
        for each, states in zip(pooled, hidden.split([one.tokens for one in batch]), strict=True):
            each.take(states, 0)
        answers = pooler.answer([each.state for each in pooled], [one.params for one in batch])
        for one, answer in zip(batch, answers, strict=True):
            values = finite(answer.cpu())
            if isinstance(values, InternalError):
                output.failed.append(Failed(one.request.attempt, values))
            else:
                output.rows.append(RowOutput(one.request.attempt, [], Finish.STOP, vector=values))

    # --- handoffs, pulls, loans and the host tier: there are no pages ---------------------------------------------

    def activate(self, attempt: Attempt, first_token: int) -> None:
        raise InternalError(f"attempt {attempt} cannot be activated: an encoder awaits no handoff")

    def release(self, attempt: Attempt, *, valid: bool) -> None:
        """Nothing is held."""

    def pulled(self, attempt: Attempt, tokens: int) -> None:
        raise InternalError(f"attempt {attempt} pulls nothing")

    def lend(self, attempt: Attempt, block_hashes: Sequence[bytes]) -> Loan:
        return Loan([], [])

    def take_back(self, attempt: Attempt) -> None:
        """Nothing is lent."""

    def use_tier(self, free_pages: int) -> None:
        """Nothing is moved there."""

    def moved(self, batch: int) -> None:
        """Nothing is moved."""

    def tiered(self, block_hashes: Sequence[bytes], tier: Tier | None) -> None:
        """Nothing is there."""


def _packed(batch: Sequence[_Waiting], device: torch.device) -> PackedBatch:
    lengths = [one.tokens for one in batch]
    segments = np.zeros(sum(lengths), dtype=np.int64)
    end = 0
    for one in batch:
        start, end = end, end + one.tokens
        if one.params.second_text_at:
            segments[start + one.params.second_text_at : end] = 1
    return PackedBatch(
        token_ids=indices((token for one in batch for token in one.request.token_ids), device),
        positions=indices((position for length in lengths for position in range(length)), device),
        segments=torch.from_numpy(segments).to(device),
        lengths=lengths,
    )
