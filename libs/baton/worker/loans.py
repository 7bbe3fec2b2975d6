"""Cached prefixes that this worker lends: the other side of a pull, in any role.

The agent says `Wanted` when another agent asks for blocks; what the engine holds of them is locked and announced at
once, all layers of it. The pages stay as they are until the agent says `Released`, or, after the link broke, until its
next `Welcome`.
"""

from __future__ import annotations

import time

import numpy as np
import structlog

from baton.core.attempt import Attempt
from baton.core.hashing import HASH_BYTES
from baton.core.layout import KvLayout
from baton.engine.api import StepEngine
from baton.kv.local import Abort, AgentMessage, Commit, Offer, Produced, Released, Wanted
from baton.worker import metrics
from baton.worker.desk import Counter

log = structlog.get_logger(__name__)


class Loans:
    """All loans of one worker. Methods run on the asyncio loop; what is lent is found on the engine's thread."""

    def __init__(self, counter: Counter, layout: KvLayout) -> None:
        self._counter = counter
        self._layout = layout
        self._lent: set[Attempt] = set()  # added to on the engine's thread, before the agent hears of the loan

    def on_agent_message(self, message: AgentMessage) -> bool:
        """True when the message is about a loan."""
        if isinstance(message, Wanted):
            self._counter.post(lambda engine: self._lend(engine, message))
            return True
        if isinstance(message, Released) and message.attempt in self._lent:
            metrics.loans.labels(outcome=message.outcome).inc()
            log.debug("loan ended", request_id=message.attempt.request_id, outcome=message.outcome)
            self._take_back(message.attempt)
            return True
        return False

    def on_agent_connected(self) -> None:
        """The agent is new or quiet: nobody reads what was lent before."""
        for attempt in list(self._lent):
            self._take_back(attempt)

    def _lend(self, engine: StepEngine, wanted: Wanted) -> None:
        attempt, data = wanted.attempt, wanted.block_hashes
        if attempt in self._lent:
            return  # a loan has one reader; the agent asks once
        loan = engine.lend(attempt, [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)])
        now, tokens = time.time(), loan.tokens
        if tokens <= wanted.first_page * self._layout.page_size:
            engine.take_back(attempt)
            metrics.loans.labels(outcome="not_held").inc()
            self._counter.send(Abort(attempt, f"this worker holds {tokens} of its tokens"))
            return
        self._lent.add(attempt)
        ids, generations = (np.asarray(values, "<u4").tobytes() for values in (loan.page_ids, loan.generations))
        self._counter.send(Offer(attempt, tokens))
        self._counter.send(Produced(attempt, 0, self._layout.layers, 0, ids, generations, now))
        self._counter.send(Commit(attempt, tokens, b"", now))

    def _take_back(self, attempt: Attempt) -> None:
        self._lent.discard(attempt)
        self._counter.post(lambda engine: engine.take_back(attempt))
