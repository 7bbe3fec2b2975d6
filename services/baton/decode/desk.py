"""The fetching side of handoffs: reserve pages, have the agent fill them, then let the engine decode.

The engine reserves; `Fetch` goes to the agent; `Fetched` means that every byte is there, verified, and that the
source's lease was alive after the last read. Only then may the engine run the attempt. Pages of a failed or cancelled
fetch are given back when the agent has said that no operation is in flight on them.

An attempt may begin with a pull of a prefix from a third worker (baton.worker.pulls). Its handoff is reserved when that
is over, for what did not come; until then its pages are the pull's affair.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import structlog

from baton.core.attempt import Attempt
from baton.core.errors import AttemptFailed, HandoffFailed, InvalidRequest
from baton.engine.api import EngineRequest, HandoffListener, Reserved, Stage, StepOutput
from baton.kv.local import AgentMessage, CancelFetch, Fetch, Fetched, FetchFailed
from baton.rpc.v1 import worker_pb2 as pb
from baton.worker import metrics
from baton.worker.desk import CommitState, Counter

log = structlog.get_logger(__name__)

FETCH_TIMEOUT_S = 600.0  # of a whole handoff, queueing on the prefill worker included; stalls are found much earlier


@dataclass(slots=True)
class _Wanted:
    tokens: int
    source: pb.Fetch
    pages: int = 0
    reserved: bool = False  # for the handoff
    sent: bool = False  # the agent may write into the attempt's pages


class FetchDesk:
    """All state is touched on the asyncio loop only."""

    stages = frozenset({Stage.RUN_ALL, Stage.FETCH})
    listener: HandoffListener | None = None

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._wanted: dict[Attempt, _Wanted] = {}
        self._stranded: set[Attempt] = set()  # pages wait for the next Welcome
        self._connected = False

    def assigned(self, request: EngineRequest, message: pb.Assign) -> None:
        if request.stage is not Stage.FETCH:
            return
        if not message.fetch.agent.address:
            raise InvalidRequest("fetch names no source agent")
        if not self._connected:
            raise AttemptFailed("this decode worker has no KV agent now")
        self._wanted[request.attempt] = _Wanted(len(request.token_ids), message.fetch)

    def on_step(self, output: StepOutput) -> None:
        for reserved in output.reserved:
            if not reserved.block_hashes:
                self._fetch(reserved)
        for failed in output.failed:
            self._wanted.pop(failed.attempt, None)

    def _fetch(self, reserved: Reserved) -> None:
        attempt = reserved.attempt
        wanted = self._wanted.get(attempt)
        if wanted is None:
            return  # `on_agent_connected` gives the pages back
        wanted.reserved = True
        if not self._counter.is_live(attempt):
            return  # `cancelled` gives the pages back
        source = wanted.source
        wanted.pages = len(reserved.page_ids)
        wanted.sent = self._counter.send(
            Fetch(
                attempt=attempt,
                source_address=source.agent.address,
                source_agent_epoch=source.agent.epoch,
                source_worker_id=source.worker_id,
                source_worker_epoch=source.worker_epoch,
                tokens=wanted.tokens,
                first_page=reserved.first_page,
                page_ids=np.asarray(reserved.page_ids, dtype="<u4").tobytes(),
                timeout_s=FETCH_TIMEOUT_S,
                traceparent=self._counter.traceparent(attempt),
            )
        )
        if not wanted.sent:
            self._over(attempt, "the decode worker lost its KV agent")

    def on_agent_message(self, message: AgentMessage) -> None:
        if isinstance(message, Fetched):
            self._fetched(message)
        elif isinstance(message, FetchFailed):
            metrics.handoffs.labels(outcome="failed").inc()
            self._over(message.attempt, message.reason)

    def _fetched(self, message: Fetched) -> None:
        attempt = message.attempt
        wanted = self._wanted.get(attempt)
        if wanted is None or not self._counter.is_live(attempt):
            self._over(attempt, "cancelled")
            return
        if message.tokens != wanted.tokens:
            self._over(attempt, f"the commit record has {message.tokens} tokens, the request {wanted.tokens}")
            return
        del self._wanted[attempt]
        metrics.handoffs.labels(outcome="fetched").inc()
        first_token = msgspec.msgpack.decode(message.state, type=CommitState).first_token
        self._counter.post(lambda engine: engine.activate(attempt, first_token))
        report = pb.HandoffReport(
            bytes=message.bytes_read,
            pages=wanted.pages,
            total_s=max(0.0, message.done_at - message.first_read_at),
            exposed_s=max(0.0, message.done_at - message.computed_at),
        )
        log.debug(
            "handoff verified", request_id=attempt.request_id, attempt=attempt.n, bytes=report.bytes,
            total_s=report.total_s, exposed_s=report.exposed_s,
        )  # fmt: skip
        self._counter.report(attempt, report)

    def on_agent_connected(self) -> None:
        self._connected = True
        for attempt in self._stranded:
            self._give_back(attempt)
        self._stranded.clear()

    def on_agent_lost(self) -> None:
        self._connected = False
        lost, self._wanted = list(self._wanted), {}
        for attempt in lost:
            self._counter.fail(attempt, HandoffFailed("the decode worker lost its KV agent"))
            self._stranded.add(attempt)
            self._stop(attempt)

    def cancelled(self, attempt: Attempt, pages_free: bool) -> None:
        wanted = self._wanted.get(attempt)
        if wanted is None:
            return
        if pages_free or not wanted.reserved:
            del self._wanted[attempt]  # pages that a pull fills come back with the end of the pull
        elif not wanted.sent:
            self._over(attempt, "cancelled")
        elif not self._counter.send(CancelFetch(attempt, "cancelled")):
            del self._wanted[attempt]
            self._stranded.add(attempt)

    def _over(self, attempt: Attempt, reason: str) -> None:
        """The agent is quiet on the attempt's pages, and it will not run here."""
        self._wanted.pop(attempt, None)
        self._counter.fail(attempt, HandoffFailed(reason))
        self._give_back(attempt)

    def _give_back(self, attempt: Attempt) -> None:
        self._counter.post(lambda engine: engine.release(attempt, valid=False))

    def _stop(self, attempt: Attempt) -> None:
        self._counter.post(lambda engine: engine.cancel(attempt))
