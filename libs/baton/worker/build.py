"""Checkpoint -> runner -> pool memory -> engine. Slow and blocking: run it on a thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.engine.api import HandoffListener, StepEngine
from baton.engine.bounded import UNLIMITED
from baton.engine.cuda.graphs import sizes_up_to
from baton.engine.cuda.mirror import MirroredEngine, MirroredListener, PoolMirror
from baton.engine.cuda.support import pick_device
from baton.engine.engine import EngineCore
from baton.engine.grammar.compiler import GrammarCompiler
from baton.engine.grammar.limits import GrammarLimits
from baton.engine.intake import Limits
from baton.engine.loading import LoadedRunner, load_runner, pooling_model
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.engine.sizing import pool_pages, request_blocks
from baton.engine.states import state_pages
from baton.kv.generations import Generations
from baton.kv.memory import PoolMemory
from baton.runtime import cores
from baton.runtime.progress import reporting
from baton.worker import metrics
from baton.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class BuiltModel:
    """A loaded model and the memory of its KV pool, ready to make an engine of."""

    runner: LoadedRunner
    pages: int
    spare_pages: int  # the last ones, lent to nobody: where the padding of CUDA graphs goes
    memory: PoolMemory | None  # that an agent can map: of the pool, or of a mirror
    generations: Generations | None  # of the pages in it
    mirrored: bool  # the pool is in the device's own memory, and the agent sees a copy of it
    config: EngineConfig
    grammars: GrammarCompiler

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one request: what the model and its pool allow."""
        runner, pages = self.runner, self.pages - RESERVED_PAGES - self.spare_pages
        blocks = request_blocks(runner.layout, pages, self.config, runner.device.type)
        return Limits(runner.vocab_size, runner.max_context_tokens, blocks, runner.layout.page_size).request_tokens

    def make_engine(self, listener: HandoffListener | None) -> StepEngine:
        shared = self.memory.buffer if self.memory is not None else None
        pool = KvPool(
            self.runner.layout,
            self.pages,
            None if self.mirrored else shared,
            self.runner.device,
            self.spare_pages,
            self.generations.words if self.generations is not None else None,
        )
        mirror = PoolMirror(pool.tensor, shared) if self.mirrored else None
        if mirror is not None and listener is not None:
            listener = MirroredListener(listener, mirror)
        engine = EngineCore(self.runner, pool, self.config, listener, pooling=pooling_model(self.runner))
        if self.spare_pages:
            self.runner.capture(sizes_up_to(self.config.max_running), reporting("capturing CUDA graphs"))
        return MirroredEngine(engine, mirror, self.runner.layout) if mirror is not None else engine


def build_model(settings: WorkerSettings, epoch: int, pages_of: Callable[[KvLayout], int] | None = None) -> BuiltModel:
    """Load the checkpoint and make the pool, of as many pages as the settings or `pages_of` say. Raises ConfigError
    (CheckpointError) naming what is wrong."""
    torch.set_num_threads(cpu_threads(settings))
    path = Path(settings.model)
    started = time.monotonic()
    runner = load_runner(
        path,
        model_backend=settings.model_backend,
        trust_remote_code=settings.trust_remote_code,
        dtype=settings.dtype,
        kv_dtype=settings.kv_cache_dtype,
        device=pick_device(settings.device),
        page_size=settings.page_size,
        progress=reporting("loading weights"),
        max_context_tokens=settings.max_context_tokens or None,
        deterministic=settings.deterministic,
        quantization=settings.quantization,
    )
    metrics.model_info.labels(backend=runner.model_backend).set(1)
    config = EngineConfig(
        max_running=settings.max_running,
        max_batch_tokens=settings.max_batch_tokens,
        chunk_tokens=settings.chunk_tokens,
    )
    layout = runner.layout
    if pages_of is not None:
        pages = pages_of(layout)
    else:
        pages = pool_pages(runner, config, settings.kv_memory_bytes, settings.memory_fraction)
    spare_pages = int(settings.cuda_graphs and runner.can_capture)
    memory = generations = None
    on_cpu = runner.device.type == "cpu"
    if on_cpu or settings.agent_socket:
        memory = PoolMemory.create(layout, pages)
        memory.populate(reporting("taking the pool's memory"))
        memory.write_canary(epoch)
        generations = Generations.create(pages)
    log.info(
        "model loaded", path=str(path), seconds=round(time.monotonic() - started, 2), kv_dtype=layout.dtype,
        device=str(runner.device), quantization=settings.quantization, pages=pages, model_backend=runner.model_backend,
        **_pool_facts(layout, pages - RESERVED_PAGES - spare_pages, runner.device.type, config),
    )  # fmt: skip
    limits = GrammarLimits(
        text_bytes=settings.structure_bytes, compile_s=settings.structure_compile_s, cached=settings.structures_cached
    )
    grammars = GrammarCompiler(path, runner.vocab_size, runner.eos_token_ids, limits, metrics.observe_structure)
    mirrored = memory is not None and not on_cpu
    return BuiltModel(runner, pages, spare_pages, memory, generations, mirrored, config, grammars)


def _pool_facts(layout: KvLayout, pages: int, device: str, config: EngineConfig) -> dict[str, object]:
    """For the log: how many tokens the pool holds, and of models that let go of some, or keep states, what kinds of
    pages it has, and how many states at most."""
    if not layout.groups:
        return {"pool_tokens": pages * layout.page_size}
    kinds = [f"{len(group.layers)} {group.kind} {group.size or ''}".rstrip() for group in layout.groups]
    blocks = request_blocks(layout, pages, config, device)  # of one long request: short ones need more for each token
    tokens = "unlimited" if blocks >= UNLIMITED - 1 else blocks * layout.page_size
    states = {"pool_states": pages // state_pages(layout)} if state_pages(layout) else {}
    return {"pool_tokens": tokens, "layers_by_pages": ", ".join(kinds), **states}


def cpu_threads(settings: WorkerSettings) -> int:
    """Those asked for, else what suits the host; says which."""
    here = cores.available()
    threads = settings.threads or cores.worker_threads(settings.host_workers, here)
    log.info(
        "CPU threads", threads=threads, chosen_by="threads" if settings.threads else "this worker", host=str(here),
        workers=settings.host_workers,
    )  # fmt: skip
    return threads
