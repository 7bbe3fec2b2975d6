"""Prefixes that this worker takes from other workers' caches instead of computing them, in any role.

The router names the source with the assignment; the engine reserves pages for what is not here (`Reserved`), the agent
fills them, and whatever came, the request goes on with it: what did not come is computed. Pages of a pull go back to
the engine only when the agent has said that no operation is in flight on them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import structlog

from baton.core.attempt import Attempt
from baton.core.errors import HandoffFailed
from baton.core.layout import KvLayout
from baton.engine.api import EngineRequest, Reserved, Stage, StepOutput
from baton.kv.handoff import Failure
from baton.kv.local import AgentMessage, CancelFetch, Fetch, Fetched, FetchFailed
from baton.rpc.v1 import worker_pb2 as pb
from baton.worker import metrics
from baton.worker.desk import Counter
from baton.worker.pull_meter import PullMeter

log = structlog.get_logger(__name__)

_KINDS = frozenset(Failure)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The agent may write into the pages."""

    tokens: int
    first_page: int
    asked_at: float  # wall clock, as in the agent's reports


class Pulls:
    """All pulls of one worker; all state is touched on the asyncio loop only.

    `timeout_s` bounds a pull; afterwards its request computes what it wanted.
    """

    def __init__(self, counter: Counter, layout: KvLayout, worker_id: str, timeout_s: float) -> None:
        self.meter = PullMeter()
        self._counter = counter
        self._layout = layout
        self._worker_id = worker_id
        self._timeout_s = timeout_s
        self._sources: dict[Attempt, pb.Pull] = {}  # assigned, and nothing reserved so far
        self._asked: dict[Attempt, _Asked] = {}
        self._stranded: set[Attempt] = set()  # pages wait for the next Welcome
        self._connected = False

    def assigned(self, request: EngineRequest, message: pb.Assign) -> EngineRequest:
        """The request as it is to be submitted: with a pull when one was asked for and can be had."""
        source = message.pull
        usable = source.agent.address and source.worker_id != self._worker_id
        if request.stage is Stage.FETCH or not self._connected or not usable:
            return request
        self._sources[request.attempt] = source
        return replace(request, pull_tokens=source.tokens)

    def on_step(self, output: StepOutput) -> None:
        for reserved in output.reserved:
            if reserved.block_hashes:
                self._pull(reserved, self._sources.pop(reserved.attempt, None))
        for admitted in output.admitted:
            self._sources.pop(admitted.attempt, None)
        for failed in output.failed:
            self._sources.pop(failed.attempt, None)

    def _pull(self, reserved: Reserved, source: pb.Pull | None) -> None:
        attempt = reserved.attempt
        tokens = (reserved.first_page + len(reserved.page_ids)) * self._layout.page_size
        if source is not None and self._counter.is_live(attempt) and self._ask(reserved, source, tokens):
            self._asked[attempt] = _Asked(tokens, reserved.first_page, time.time())
        else:
            self._over(attempt, 0)

    def _ask(self, reserved: Reserved, source: pb.Pull, tokens: int) -> bool:
        """Have the agent fill the pages; False: it does not hear."""
        fetch = Fetch(
            attempt=reserved.attempt,
            source_address=source.agent.address,
            source_agent_epoch=source.agent.epoch,
            source_worker_id=source.worker_id,
            source_worker_epoch=source.worker_epoch,
            tokens=tokens,
            first_page=reserved.first_page,
            page_ids=np.asarray(reserved.page_ids, dtype="<u4").tobytes(),
            timeout_s=self._timeout_s,
            block_hashes=b"".join(reserved.block_hashes),
        )
        return self._counter.send(fetch)

    def on_agent_message(self, message: AgentMessage) -> bool:
        """True when the message is about a pull."""
        if not isinstance(message, Fetched | FetchFailed) or message.attempt not in self._asked:
            return False
        asked = self._asked.pop(message.attempt)
        if isinstance(message, Fetched):
            self._came(asked, message)
        else:
            self._failed(asked, message)
        return True

    def _came(self, asked: _Asked, message: Fetched) -> None:
        attempt = message.attempt
        tokens = min(message.tokens, asked.tokens)
        metrics.pulls.labels(outcome="fetched" if tokens == asked.tokens else "in_part").inc()
        metrics.pulled_bytes.inc(message.bytes_read)
        metrics.pulled_pages.inc(tokens // self._layout.page_size - asked.first_page)
        metrics.pull_s.observe(message.done_at - asked.asked_at)
        wait_s = message.first_read_at - asked.asked_at
        self.meter.came(message.bytes_read, max(0.0, wait_s), message.done_at - message.first_read_at)
        log.debug("prefix pulled", request_id=attempt.request_id, attempt=attempt.n, tokens=tokens)
        self._over(attempt, tokens)

    def _failed(self, asked: _Asked, message: FetchFailed) -> None:
        attempt, kind = message.attempt, message.reason.partition(":")[0]
        metrics.pulls.labels(outcome=kind if kind in _KINDS else "other").inc()
        if kind != Failure.CANCELLED:
            self.meter.failed(time.time() - asked.asked_at)
            log.info("pull failed", request_id=attempt.request_id, attempt=attempt.n, reason=message.reason)
        self._over(attempt, 0)

    def on_agent_connected(self) -> None:
        self._connected = True
        for attempt in self._stranded:
            self._over(attempt, 0)
        self._stranded.clear()

    def on_agent_lost(self) -> None:
        """An agent that is not heard of may still write into the pages: these attempts cannot go on here."""
        self._connected = False
        self._sources.clear()
        lost, self._asked = list(self._asked), {}
        for attempt in lost:
            metrics.pulls.labels(outcome="agent_lost").inc()
            self._counter.fail(attempt, HandoffFailed("the worker lost its KV agent while it pulled a prefix"))
            self._stranded.add(attempt)
            self._stop(attempt)

    def cancelled(self, attempt: Attempt) -> None:
        """The attempt is not wanted any more; if it pulls, its pages come back by the agent's answer."""
        self._sources.pop(attempt, None)
        if attempt in self._asked:
            self._counter.send(CancelFetch(attempt, "cancelled"))

    def _over(self, attempt: Attempt, tokens: int) -> None:
        self._counter.post(lambda engine: engine.pulled(attempt, tokens))

    def _stop(self, attempt: Attempt) -> None:
        self._counter.post(lambda engine: engine.cancel(attempt))
