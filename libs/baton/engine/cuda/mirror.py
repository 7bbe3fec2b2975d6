"""A pool in a GPU's memory as a KV agent sees it: through a copy in the host's memory, page for page.

Agents read and write a pool through the host: memory that both processes map, checksums, the canary, every transport.
A worker with its pool on a GPU keeps memory of the same layout beside it. Pages come down to it before the agent is
told of them (a layer of a prompt that was computed, a loan, a block that moves to the host tier), and go up from it
when the agent has filled them, before the engine uses them. Everything here happens between engine and worker, so that
neither of them, nor the agent, knows of two memories.

What it costs: as much host memory as the pool has, and on each side one more way over the bus: layer by layer and
beside the computation where pages come down; the engine waits where they go up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import structlog
import torch

from baton.core.attempt import Attempt
from baton.core.layout import KvLayout
from baton.core.tiers import Tier
from baton.engine.api import EngineLoad, EngineRequest, HandoffListener, Loan, Reserved, StepEngine, StepOutput

log = structlog.get_logger(__name__)


class PoolMirror:
    """Copies pages between `device_pool`, [layers, pages, ...], and `host`, memory of as many bytes, laid out alike.

    Any thread. Copies are done when a method returns; what they read must have been computed, not only launched.
    """

    def __init__(self, device_pool: torch.Tensor, host: Any) -> None:
        """`host` is writable memory that stays where it is; it is pinned for as long as the process lives."""
        self._device = device_pool
        self._host = torch.frombuffer(host, dtype=device_pool.dtype, count=device_pool.numel()).view(device_pool.shape)
        self._stream = torch.cuda.Stream(device_pool.device) if device_pool.device.type == "cuda" else None
        # Of each page, the use (baton.engine.pool) whose bytes are in the host's memory in all layers; 0: none.
        self._uses = np.zeros(device_pool.shape[1], dtype=np.uint32)
        if self._stream is not None:
            _pin(self._host)

    @property
    def layers(self) -> int:
        return self._device.shape[0]

    def down(self, layer_start: int, layer_end: int, page_ids: Sequence[int]) -> None:
        """Bring layers [layer_start, layer_end) of the pages to the host."""
        self._copy(self._host, self._device, range(layer_start, layer_end), page_ids)

    def down_once(self, layer_start: int, layer_end: int, page_ids: Sequence[int], generations: Sequence[int]) -> None:
        """As `down`, of full or final pages, but for those that have come down already in this use of theirs.

        The last layer of a page comes down last.
        """
        pages, uses = np.asarray(page_ids), np.asarray(generations, dtype=np.uint32)
        new = self._uses[pages] != uses
        self.down(layer_start, layer_end, pages[new].tolist())
        if layer_end == self.layers:
            self._uses[pages] = uses

    def up(self, page_ids: Sequence[int]) -> None:
        """Bring all layers of the pages to the device."""
        self._copy(self._device, self._host, range(self.layers), page_ids)

    def _copy(self, to: torch.Tensor, of: torch.Tensor, layers: range, page_ids: Sequence[int]) -> None:
        with torch.cuda.stream(self._stream), torch.inference_mode():  # no stream: no effect
            for first, last in _runs(page_ids):
                for layer in layers:
                    to[layer, first:last].copy_(of[layer, first:last], non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()


class MirroredListener:
    """Tells `listener` of pages when they are in the host's memory."""

    def __init__(self, listener: HandoffListener, mirror: PoolMirror) -> None:
        self._listener = listener
        self._mirror = mirror

    def offered(self, attempt: Attempt, tokens: int) -> None:
        self._listener.offered(attempt, tokens)

    def produced(
        self,
        attempt: Attempt,
        layer_start: int,
        layer_end: int,
        page_start: int,
        page_ids: Sequence[int],
        generations: Sequence[int],
    ) -> None:
        self._mirror.down_once(layer_start, layer_end, page_ids, generations)
        self._listener.produced(attempt, layer_start, layer_end, page_start, page_ids, generations)


class MirroredEngine:
    """`engine`, whose pool is mirrored, as one whose pool is in the host's memory. See StepEngine for all methods."""

    def __init__(self, engine: StepEngine, mirror: PoolMirror, layout: KvLayout) -> None:
        self._engine = engine
        self._mirror = mirror
        self._layout = layout
        self._reserved: dict[Attempt, Reserved] = {}  # the agent may be filling their pages

    def submit(self, request: EngineRequest) -> None:
        self._engine.submit(request)

    def activate(self, attempt: Attempt, first_token: int) -> None:
        self._bring_up(attempt)
        self._engine.activate(attempt, first_token)

    def cancel(self, attempt: Attempt) -> bool:
        free = self._engine.cancel(attempt)
        if free:
            self._reserved.pop(attempt, None)
        return free

    def release(self, attempt: Attempt, *, valid: bool) -> None:
        if valid:
            self._bring_up(attempt)
        self._reserved.pop(attempt, None)
        self._engine.release(attempt, valid=valid)

    def pulled(self, attempt: Attempt, tokens: int) -> None:
        self._bring_up(attempt, tokens)
        self._engine.pulled(attempt, tokens)

    def lend(self, attempt: Attempt, block_hashes: Sequence[bytes]) -> Loan:
        loan = self._engine.lend(attempt, block_hashes)
        self._mirror.down_once(0, self._mirror.layers, loan.page_ids, loan.generations)
        return loan

    def use_tier(self, free_pages: int) -> None:
        self._engine.use_tier(free_pages)

    def moved(self, batch: int) -> None:
        self._engine.moved(batch)

    def tiered(self, block_hashes: Sequence[bytes], tier: Tier | None) -> None:
        self._engine.tiered(block_hashes, tier)

    def take_back(self, attempt: Attempt) -> None:
        self._engine.take_back(attempt)

    def step(self) -> StepOutput:
        output = self._engine.step()
        for failed in output.failed:
            self._reserved.pop(failed.attempt, None)
        for reserved in output.reserved:
            self._reserved[reserved.attempt] = reserved
        for moved_out in output.moved_out:
            self._mirror.down(0, self._mirror.layers, moved_out.page_ids)
        return output

    @property
    def has_work(self) -> bool:
        return self._engine.has_work

    def load(self) -> EngineLoad:
        return self._engine.load()

    def close(self) -> None:
        self._engine.close()

    def _bring_up(self, attempt: Attempt, tokens: int | None = None) -> None:
        """What was filled of the attempt's reserved pages: those of its first `tokens`, or all of them."""
        reserved = self._reserved.pop(attempt, None)
        if reserved is None:
            return
        filled = len(reserved.page_ids)
        if tokens is not None and tokens != reserved.tokens:
            filled = max(0, self._layout.pages_for(tokens) - reserved.first_page)
        self._mirror.up(reserved.page_ids[:filled])


def _runs(page_ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pages that follow each other, as [first, last)."""
    pages = np.asarray(page_ids, dtype=np.int64)
    for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1


def _pin(host: torch.Tensor) -> None:
    status = torch.cuda.cudart().cudaHostRegister(host.data_ptr(), host.nbytes, 0)
    if int(status):
        log.warning("the host's copy of the pool cannot be pinned: pages travel slowly", reason=str(status))
