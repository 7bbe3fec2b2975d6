"""Prefixes that this worker takes from elsewhere instead of computing them, in any role.

They come from another worker's cache (a pull; the router names the source with the assignment), or from the tiers of
this worker's own agent (the engine knows what those hold). The engine reserves pages for what is not here
(`Reserved`), the agent fills them, and whatever came, the request goes on with it: what did not come is computed. The
pages go back to the engine only when the agent has said that no operation is in flight on them.
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
from baton.kv.local import AgentMessage, CancelFetch, Fetch, Fetched, FetchFailed, Restore, Restored
from baton.rpc.v1 import worker_pb2 as pb
from baton.worker import metrics
from baton.worker.desk import Counter
from baton.worker.pull_meter import PullMeter
from baton.worker.tiering import RestorePrices
from baton.worker.traces import restore_over

log = structlog.get_logger(__name__)

_KINDS = frozenset(Failure)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The agent may write into the pages."""

    reserved: Reserved
    tokens: int
    asked_at: float  # wall clock, as in the agent's reports


class Pulls:
    """All pulls of one worker; all state is touched on the asyncio loop only.

    `timeout_s` bounds a pull; afterwards its request computes what it wanted. `meter` and `prices` are the measured
    prices of the two sources: the router decides by the first, `Pulls` itself by the second.
    """

    def __init__(self, counter: Counter, layout: KvLayout, worker_id: str, timeout_s: float) -> None:
        self.meter = PullMeter()
        self.prices = RestorePrices()
        self._counter = counter
        self._layout = layout
        self._worker_id = worker_id
        self._timeout_s = timeout_s
        self._sources: dict[Attempt, tuple[Attempt, pb.Pull]] = {}  # assigned, and nothing reserved so far
        self._asked: dict[Attempt, _Asked] = {}  # by the name that the agent knows
        self._stranded: set[Attempt] = set()  # pages wait for the next Welcome
        self._connected = False

    def assigned(self, request: EngineRequest, message: pb.Assign) -> EngineRequest:
        """The request as it is to be submitted: with a pull when one was asked for and can be had."""
        source = message.pull
        usable = source.agent.address and source.worker_id != self._worker_id
        if not self._connected or not usable:
            return request
        name = _name_at_decode(request.attempt) if request.stage is Stage.FETCH else request.attempt
        self._sources[request.attempt] = name, source
        return replace(request, pull_tokens=source.tokens)

    def on_step(self, output: StepOutput, extend_tokens_per_s: float = 0.0) -> None:
        for reserved in output.reserved:
            if reserved.block_hashes:
                self._begin(reserved, self._sources.pop(reserved.attempt, None), extend_tokens_per_s)
        for admitted in output.admitted:
            self._sources.pop(admitted.attempt, None)
        for failed in output.failed:
            self._sources.pop(failed.attempt, None)

    def _begin(self, reserved: Reserved, pull: tuple[Attempt, pb.Pull] | None, extend_tokens_per_s: float) -> None:
        attempt = name = reserved.attempt
        pages = len(reserved.page_ids)
        if not self._counter.is_live(attempt):
            asked = False
        elif reserved.from_tier:
            pages = self._worth(reserved, extend_tokens_per_s)
            asked = pages > 0 and self._restore(reserved, pages)
        elif pull is not None:
            name, source = pull
            asked = self._pull(name, reserved, source)
        else:
            asked = False
        if asked:
            whole = pages == len(reserved.page_ids)
            tokens = reserved.tokens if whole else (reserved.first_page + pages) * self._layout.page_size
            self._asked[name] = _Asked(reserved, tokens, time.time())
        else:
            self._over(attempt, 0)

    def _worth(self, reserved: Reserved, extend_tokens_per_s: float) -> int:
        """How many pages the agent's tiers bring sooner than they are computed, as far as that is measured."""
        page_bytes, whole = self._layout.layers * self._layout.page_bytes, len(reserved.page_ids)
        if self._layout.groups:
            saved_tokens = reserved.tokens - reserved.usable_tokens
            pages = whole * self.prices.worth_all(reserved.tiers, page_bytes, saved_tokens, extend_tokens_per_s)
        else:
            pages = self.prices.worth(reserved.tiers, page_bytes, self._layout.page_size, extend_tokens_per_s)
        if pages < len(reserved.page_ids):
            metrics.restores.labels(outcome="slower").inc()
        return pages

    def _restore(self, reserved: Reserved, pages: int) -> bool:
        """Have the agent fill the first `pages` from its tiers; False: it does not hear."""
        ids = np.asarray(reserved.page_ids[:pages], dtype="<u4").tobytes()
        hashes = b"".join(reserved.block_hashes[:pages])
        return self._counter.send(Restore(reserved.attempt, reserved.first_page, ids, hashes))

    def _pull(self, name: Attempt, reserved: Reserved, source: pb.Pull) -> bool:
        """Have the agent fill the pages from the source's pool; False: it does not hear."""
        fetch = Fetch(
            attempt=name,
            source_address=source.agent.address,
            source_agent_epoch=source.agent.epoch,
            source_worker_id=source.worker_id,
            source_worker_epoch=source.worker_epoch,
            tokens=reserved.tokens,
            first_page=reserved.first_page,
            page_ids=np.asarray(reserved.page_ids, dtype="<u4").tobytes(),
            timeout_s=self._timeout_s,
            block_hashes=b"".join(reserved.block_hashes),
            traceparent=self._counter.traceparent(reserved.attempt),
        )
        return self._counter.send(fetch)

    def on_agent_message(self, message: AgentMessage) -> bool:
        """True when the message is about a pull."""
        if not isinstance(message, Fetched | Restored | FetchFailed) or message.attempt not in self._asked:
            return False
        asked = self._asked.pop(message.attempt)
        tokens = 0
        if isinstance(message, FetchFailed):
            self._failed(asked, message)
        else:
            if isinstance(message, Fetched):
                tokens = min(message.tokens, asked.tokens)
                pages = self._layout.pages_for(tokens) - asked.reserved.first_page
            else:
                pages = message.tokens // self._layout.page_size - asked.reserved.first_page
                tokens = self._brought(asked, pages)
            outcome = "fetched" if tokens == asked.tokens else "in_part"
            if isinstance(message, Fetched):
                self._pulled(asked, message, outcome, pages)
            else:
                self._restored(asked, message, outcome, pages)
            log.debug("prefix fetched", request_id=asked.reserved.attempt.request_id, tokens=tokens, outcome=outcome)
        self._over(asked.reserved.attempt, tokens)
        return True

    def _brought(self, asked: _Asked, pages: int) -> int:
        """How many tokens are there with so many of the pages that were asked for: none, unless all are, of a model
        whose blocks have pages of several kinds."""
        if self._layout.groups:
            return asked.tokens if pages == len(asked.reserved.page_ids) else 0
        return min((asked.reserved.first_page + pages) * self._layout.page_size, asked.tokens)

    def _pulled(self, asked: _Asked, message: Fetched, outcome: str, pages: int) -> None:
        metrics.pulls.labels(outcome=outcome).inc()
        metrics.pulled_pages.inc(pages)
        metrics.pulled_bytes.inc(message.bytes_read)
        metrics.pull_s.observe(message.done_at - asked.asked_at)
        wait_s = max(0.0, message.first_read_at - asked.asked_at)
        self.meter.came(message.bytes_read, wait_s, message.done_at - message.first_read_at)

    def _restored(self, asked: _Asked, message: Restored, outcome: str, pages: int) -> None:
        metrics.restores.labels(outcome=outcome).inc()
        metrics.restored_pages.inc(pages)
        metrics.restore_s.observe(message.parts[-1].done_at - asked.asked_at)
        self.prices.came(asked.asked_at, message.parts)
        restore_over(self._counter.traceparent(asked.reserved.attempt), asked.asked_at, message.parts)

    def _failed(self, asked: _Asked, message: FetchFailed) -> None:
        attempt, kind = asked.reserved.attempt, message.reason.partition(":")[0]
        outcomes = metrics.restores if asked.reserved.from_tier else metrics.pulls
        outcomes.labels(outcome=kind if kind in _KINDS else "other").inc()
        if asked.reserved.from_tier:
            restore_over(self._counter.traceparent(attempt), asked.asked_at, error=message.reason)
        if kind != Failure.CANCELLED:
            if not asked.reserved.from_tier:
                self.meter.failed(time.time() - asked.asked_at)
            log.info("prefix not fetched", request_id=attempt.request_id, attempt=attempt.n, reason=message.reason)

    def on_agent_connected(self) -> None:
        self._connected = True
        for attempt in self._stranded:
            self._over(attempt, 0)
        self._stranded.clear()

    def on_agent_lost(self) -> None:
        """An agent that is not heard of may still write into the pages: these attempts cannot go on here."""
        self._connected = False
        self._sources.clear()
        lost, self._asked = [asked.reserved.attempt for asked in self._asked.values()], {}
        for attempt in lost:
            metrics.pulls.labels(outcome="agent_lost").inc()
            self._counter.fail(attempt, HandoffFailed("the worker lost its KV agent while it pulled a prefix"))
            self._stranded.add(attempt)
            self._stop(attempt)

    def cancelled(self, attempt: Attempt) -> None:
        """The attempt is not wanted any more; if it pulls, its pages come back by the agent's answer."""
        self._sources.pop(attempt, None)
        for name in (attempt, _name_at_decode(attempt)):
            if (asked := self._asked.get(name)) and not asked.reserved.from_tier:
                self._counter.send(CancelFetch(name, "cancelled"))

    def _over(self, attempt: Attempt, tokens: int) -> None:
        self._counter.post(lambda engine: engine.pulled(attempt, tokens))

    def _stop(self, attempt: Attempt) -> None:
        self._counter.post(lambda engine: engine.cancel(attempt))


def _name_at_decode(attempt: Attempt) -> Attempt:
    """Under which decode pulls: prefill may pull for the same attempt from the same worker; a loan has one reader."""
    return Attempt(f"{attempt.request_id}/decode", attempt.n)
