"""Checkpoint -> runner -> pool memory -> engine. Slow and blocking: run it on a thread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from baton.core.errors import ConfigError
from baton.core.layout import RESERVED_PAGES
from baton.engine.api import HandoffListener
from baton.engine.engine import EngineCore
from baton.engine.grammar.compiler import GrammarCompiler
from baton.engine.grammar.limits import GrammarLimits
from baton.engine.intake import Limits
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.engine.runner import TorchModelRunner
from baton.kv.memory import PoolMemory
from baton.runtime import cores
from baton.worker import metrics
from baton.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

PROGRESS_PERIOD_S = 1.0


@dataclass(slots=True)
class BuiltModel:
    """A loaded model and the memory of its KV pool, ready to make an engine of."""

    runner: TorchModelRunner
    memory: PoolMemory
    config: EngineConfig
    grammars: GrammarCompiler

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one request: what the model and its pool allow."""
        layout, pages = self.runner.layout, self.memory.pages - RESERVED_PAGES
        return Limits(self.runner.vocab_size, self.runner.max_context_tokens, pages, layout.page_size).request_tokens

    def make_engine(self, listener: HandoffListener | None) -> EngineCore:
        pool = KvPool(self.runner.layout, self.memory.pages, self.memory.buffer)
        return EngineCore(self.runner, pool, self.config, listener)


def build_model(settings: WorkerSettings, epoch: int) -> BuiltModel:
    """Load the checkpoint and make the pool. Raises ConfigError (CheckpointError) naming what is wrong."""
    torch.set_num_threads(_threads(settings))
    path = Path(settings.model)
    started = time.monotonic()
    runner = TorchModelRunner.load(
        path,
        dtype=settings.dtype,
        page_size=settings.page_size,
        progress=_ProgressLog(),
        max_context_tokens=settings.max_context_tokens or None,
        deterministic=settings.deterministic,
        quantization=settings.quantization,
    )
    layout = runner.layout
    pages = settings.kv_memory_bytes // (layout.layers * layout.page_bytes)
    if pages <= RESERVED_PAGES:
        raise ConfigError(
            f"kv_memory_bytes = {settings.kv_memory_bytes} holds {pages} pages of "
            f"{layout.layers * layout.page_bytes} bytes; {RESERVED_PAGES + 1} are the least"
        )
    memory = PoolMemory.create(layout, pages)
    memory.write_canary(epoch)
    log.info(
        "model loaded", path=str(path), seconds=round(time.monotonic() - started, 2), dtype=layout.dtype,
        quantization=settings.quantization, pages=pages, pool_tokens=(pages - RESERVED_PAGES) * layout.page_size,
    )  # fmt: skip
    config = EngineConfig(
        max_running=settings.max_running,
        max_batch_tokens=settings.max_batch_tokens,
        chunk_tokens=settings.chunk_tokens,
    )
    limits = GrammarLimits(
        text_bytes=settings.structure_bytes, compile_s=settings.structure_compile_s, cached=settings.structures_cached
    )
    grammars = GrammarCompiler(path, runner.vocab_size, runner.eos_token_ids, limits, metrics.observe_structure)
    return BuiltModel(runner, memory, config, grammars)


def _threads(settings: WorkerSettings) -> int:
    """Those asked for, else what suits the host; says which."""
    here = cores.available()
    threads = settings.threads or cores.worker_threads(settings.host_workers, here)
    log.info(
        "CPU threads", threads=threads, chosen_by="threads" if settings.threads else "this worker", host=str(here),
        workers=settings.host_workers,
    )  # fmt: skip
    return threads


class _ProgressLog:
    """Logs the loaded share of the weights about once a second."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_PERIOD_S:
            self._last = now
            log.info("loading weights", percent=round(100 * done_bytes / max(1, total_bytes)))
