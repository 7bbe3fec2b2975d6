"""Blocks that leave this worker's pool for the tiers of its agent, in any role, and what those bring them back for.

The engine keeps some pages free by giving up the blocks used least recently; the agent copies them before their pages
are reused, and says where they are from then on (`Placed`). How they come back is a pull's business
(baton.worker.pulls).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import structlog

from baton.core.hashing import HASH_BYTES
from baton.core.tiers import Tier
from baton.engine.api import MovedOut, StepOutput
from baton.kv import local
from baton.kv.tier.price import worth_restoring
from baton.worker.desk import Counter
from baton.worker.pull_meter import PullMeter

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
            self._over(batch.number)
            self._placed(None, batch.block_hashes)

    def on_agent_message(self, message: local.AgentMessage) -> bool:
        """True when the message is about a batch, or about where blocks are."""
        if isinstance(message, local.Placed):
            data = message.block_hashes
            self._placed(message.tier, [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)])
            return True
        if not isinstance(message, local.MovedOut):
            return False
        if message.batch in self._under_way:
            self._under_way.discard(message.batch)
            self._over(message.batch)
        return True

    def on_agent_connected(self, tier_blocks: int) -> None:
        """The agent is new or quiet. What it has, it will say."""
        for batch in self._stranded:
            self._over(batch)
        self._stranded.clear()
        if tier_blocks:
            log.info("host tier in use", blocks=tier_blocks, free_pages=self._free_pages)
            free_pages = self._free_pages
            self._counter.post(lambda engine: engine.use_tier(free_pages))

    def on_agent_lost(self) -> None:
        self._stranded |= self._under_way
        self._under_way.clear()
        self._counter.post(lambda engine: engine.use_tier(0))

    def _over(self, batch: int) -> None:
        self._counter.post(lambda engine: engine.moved(batch))

    def _placed(self, tier: Tier | None, block_hashes: Sequence[bytes]) -> None:
        self._counter.post(lambda engine: engine.tiered(block_hashes, tier))


class RestorePrices:
    """What the agent's tiers have cost lately, and how much of a run of blocks is worth bringing at that."""

    def __init__(self) -> None:
        self.meters = {tier: PullMeter() for tier in (Tier.HOST, Tier.DISK)}

    def came(self, asked_at: float, parts: Sequence[local.RestoredPart]) -> None:
        """What was asked for at `asked_at` has come in `parts`."""
        waits_since = asked_at
        for part in parts:
            meter = self.meters[part.tier]
            meter.came(part.bytes_read, max(0.0, part.started_at - waits_since), part.done_at - part.started_at)
            waits_since = part.done_at

    def worth(self, tiers: Sequence[Tier], block_bytes: int, block_tokens: int, tokens_per_s: float) -> int:
        """How many of the leading blocks, which are in `tiers`, come sooner than they are computed. A tier of which
        nothing is known costs nothing: the first try shows."""
        runs = [(tier, len(list(run))) for tier, run in groupby(tiers)]
        parts = [(blocks * block_tokens, self._seconds(tier, blocks * block_bytes)) for tier, blocks in runs]
        chosen, _ = worth_restoring(parts, tokens_per_s)
        return sum(blocks for _, blocks in runs[:chosen])

    def worth_all(self, tiers: Sequence[Tier], page_bytes: int, tokens: int, tokens_per_s: float) -> bool:
        """Whether pages in `tiers`, of use only together, come sooner than `tokens` are computed."""
        seconds = sum(self._seconds(tier, tiers.count(tier) * page_bytes) for tier in set(tiers))
        return worth_restoring([(tokens, seconds)], tokens_per_s)[0] > 0

    def _seconds(self, tier: Tier, size_bytes: int) -> float:
        meter = self.meters[tier]
        return meter.wait_s + size_bytes / meter.bytes_per_s if meter.bytes_per_s else 0.0
