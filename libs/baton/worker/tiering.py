"""Blocks that leave this worker's pool for its agent's host tier, in any role.

The engine keeps some pages free by giving up the blocks used least recently; the agent copies them before their pages
are reused. How they come back is a pull's business (baton.worker.pulls).
"""

from __future__ import annotations

import numpy as np
import structlog

from baton.core.hashing import HASH_BYTES
from baton.engine.api import MovedOut, StepOutput
from baton.kv import local
from baton.worker.desk import Counter

log = structlog.get_logger(__name__)

FREE_SHARE = 8  # one page of so many is kept free: what needs more at once evicts blocks that then are lost
MIN_FREE_PAGES = 8


class Tiering:
    """What moves out of one worker's pool; all state is touched on the asyncio loop only."""

    def __init__(self, counter: Counter, pages: int) -> None:
        self._counter = counter
        self._free_pages = max(MIN_FREE_PAGES, pages // FREE_SHARE)
        self._under_way: set[int] = set()  # batches that the agent may be reading
        self._stranded: set[int] = set()  # the same of an agent that is lost: until the next Welcome

    def on_step(self, output: StepOutput) -> None:
        for batch in output.moved_out:
            self._move_out(batch)

    def _move_out(self, batch: MovedOut) -> None:
        pages = np.asarray(batch.page_ids, dtype="<u4").tobytes()
        if self._counter.send(local.MoveOut(batch.number, pages, b"".join(batch.block_hashes))):
            self._under_way.add(batch.number)
        else:
            self._over(batch.number, batch.block_hashes)

    def on_agent_message(self, message: local.AgentMessage) -> bool:
        """True when the message is about a batch."""
        if not isinstance(message, local.MovedOut):
            return False
        if message.batch in self._under_way:
            self._under_way.discard(message.batch)
            dropped = message.dropped
            self._over(message.batch, [dropped[at : at + HASH_BYTES] for at in range(0, len(dropped), HASH_BYTES)])
        return True

    def on_agent_connected(self, tier_blocks: int) -> None:
        """The agent is new or quiet, and its tier is empty."""
        for batch in self._stranded:
            self._over(batch, [])
        self._stranded.clear()
        if tier_blocks:
            log.info("host tier in use", blocks=tier_blocks, free_pages=self._free_pages)
            free_pages = self._free_pages
            self._counter.post(lambda engine: engine.use_tier(free_pages))

    def on_agent_lost(self) -> None:
        self._stranded |= self._under_way
        self._under_way.clear()
        self._counter.post(lambda engine: engine.use_tier(0))

    def _over(self, batch: int, lost: list[bytes]) -> None:
        self._counter.post(lambda engine: engine.moved(batch))
        if lost:
            self._counter.post(lambda engine: engine.tier_lost(lost))
