"""The offering side of handoffs: what this worker computes, its agent announces.

For each OFFER attempt the agent hears `Offer`, `Produced` per layer and chunk, then `Commit` (or `Abort`), and
answers `Released` when nobody may read the pages any more. Until then the engine keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import structlog

from baton.core.attempt import Attempt
from baton.core.errors import AttemptFailed, HandoffFailed
from baton.engine.api import EngineRequest, HandoffListener, RowOutput, Stage, StepOutput
from baton.kv.local import Abort, AgentMessage, Commit, Offer, Produced, Released
from baton.rpc.v1 import worker_pb2 as pb
from baton.worker import metrics
from baton.worker.desk import CommitState, Counter

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Open:
    """An attempt whose pages are, or will be, offered."""

    tokens: int
    offered: bool = False  # the agent knows of it; written by the engine's thread, like `computed_at`
    computed_at: float = 0.0  # wall clock of the last produced layer


class OfferDesk:
    """Also the engine's HandoffListener: those two methods run on the engine's thread and only send."""

    stages = frozenset({Stage.RUN_ALL, Stage.OFFER})

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._open: dict[Attempt, _Open] = {}
        self._stranded: set[Attempt] = set()  # pages wait for the next Welcome
        self._connected = False

    @property
    def listener(self) -> HandoffListener:
        return self

    # --- engine's thread --------------------------------------------------------------------------------------

    def offered(self, attempt: Attempt, tokens: int) -> None:
        if entry := self._open.get(attempt):
            entry.offered = True
        self._counter.send(Offer(attempt, tokens, self._counter.traceparent(attempt), time.time()))

    def produced(
        self,
        attempt: Attempt,
        layer_start: int,
        layer_end: int,
        page_start: int,
        page_ids: Sequence[int],
        generations: Sequence[int],
    ) -> None:
        now = time.time()
        if entry := self._open.get(attempt):
            entry.computed_at = now
        ids, gens = (np.asarray(values, dtype="<u4").tobytes() for values in (page_ids, generations))
        self._counter.send(Produced(attempt, layer_start, layer_end, page_start, ids, gens, now))

    # --- asyncio loop -------------------------------------------------------------------------------------------

    def assigned(self, request: EngineRequest, message: pb.Assign) -> None:
        del message
        if request.stage is not Stage.OFFER:
            return
        if not self._connected:
            raise AttemptFailed("this prefill worker has no KV agent now")
        self._open[request.attempt] = _Open(tokens=len(request.token_ids))

    def on_step(self, output: StepOutput) -> None:
        for row in output.rows:
            if entry := self._open.get(row.attempt):
                self._prompt_computed(row, entry)
        for failed in output.failed:
            if self._open.pop(failed.attempt, None):
                self._counter.send(Abort(failed.attempt, failed.error.message))

    def _prompt_computed(self, row: RowOutput, entry: _Open) -> None:
        if row.finish is not None:
            self._abort(row.attempt, "the request ended at its first token")
        elif self._counter.is_live(row.attempt):
            state = msgspec.msgpack.encode(CommitState(first_token=row.token_ids[0]))
            self._counter.send(Commit(row.attempt, entry.tokens, state, entry.computed_at))

    def on_agent_message(self, message: AgentMessage) -> None:
        if not isinstance(message, Released):
            return
        metrics.handoffs.labels(outcome=message.outcome).inc()
        attempt = message.attempt
        self._open.pop(attempt, None)
        if message.outcome != "released":
            log.info("offer ended", request_id=attempt.request_id, outcome=message.outcome, reason=message.reason)
            error = HandoffFailed(f"the offer of {attempt} ended: {message.outcome}, {message.reason}")
            self._counter.fail(attempt, error)
        self._counter.done(attempt)
        self._take_back(attempt)

    def on_agent_connected(self) -> None:
        self._connected = True
        for attempt in self._stranded:
            self._take_back(attempt)
        self._stranded.clear()

    def on_agent_lost(self) -> None:
        self._connected = False
        lost, self._open = list(self._open), {}
        for attempt in lost:
            self._counter.fail(attempt, HandoffFailed("the prefill worker lost its KV agent"))
            self._stranded.add(attempt)
            self._stop(attempt)

    def cancelled(self, attempt: Attempt, pages_free: bool) -> None:
        entry = self._open.get(attempt)
        if entry is None:
            return
        if entry.offered and not pages_free:
            self._abort(attempt, "cancelled")
        else:
            del self._open[attempt]  # pages that a pull fills come back with the end of the pull

    def _abort(self, attempt: Attempt, reason: str) -> None:
        if not self._counter.send(Abort(attempt, reason)):
            self._open.pop(attempt, None)
            self._stranded.add(attempt)

    def _take_back(self, attempt: Attempt) -> None:
        self._counter.post(lambda engine: engine.release(attempt, valid=True))

    def _stop(self, attempt: Attempt) -> None:
        self._counter.post(lambda engine: engine.cancel(attempt))
