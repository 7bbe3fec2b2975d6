"""How many pages a GPU's memory holds: what `memory_fraction` leaves when weights and the largest step have theirs.

Asked once, when the model is loaded and no pool is there yet. What is not in the fraction is for CUDA graphs, for
libraries, and for other programs that take more than they had when it was asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from baton.core.errors import ConfigError
from baton.core.layout import RESERVED_PAGES, STATE, CacheGroup, KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.batch import StepBatch
from baton.engine.elements import TORCH_DTYPES
from baton.engine.loading import LoadedRunner
from baton.engine.plan import EngineConfig
from baton.engine.pool import LEAST_PAGE_BYTES
from baton.engine.sampler import SampleRow, launch_sample


@dataclass(frozen=True, slots=True)
class Memory:
    """A device's memory in bytes. `used`: by anybody, weights included. `step`: what the largest step adds."""

    total: int
    used: int
    step: int


def measure(runner: LoadedRunner, config: EngineConfig) -> Memory:
    """Run the largest step that the engine may plan, in a pool that is given up again, and see what it takes."""
    device = runner.device
    batch = largest_batch(runner, config)
    layout = runner.layout
    pages = RESERVED_PAGES + max(batch.page_table.shape[1], *(group.size for group in _of_states(layout)), 0)
    shape = (layout.layers, pages, 2, layout.page_size, layout.kv_heads, layout.head_dim)
    runner.bind_pool(torch.zeros(shape, dtype=TORCH_DTYPES[layout.dtype], device=device))
    sampling = SamplingParams(temperature=1.0, top_p=0.9)  # sorts the vocabulary
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        launch_sample(runner.forward(batch), [SampleRow(sampling, 0)] * len(batch.logit_rows))
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"a step of max_batch_tokens = {config.max_batch_tokens} does not fit into the GPU's memory: {error}"
        ) from error
    step = torch.cuda.max_memory_allocated(device) - before
    runner.unbind_pool()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return Memory(total, total - free, step)


def largest_batch(runner: LoadedRunner, config: EngineConfig) -> StepBatch:
    """As many new tokens and as many logits as one step may have. Its rows share their pages, those of states too, from
    the first that is not reserved on: what they compute means nothing."""
    device, longest = runner.device, runner.max_context_tokens - 1
    tokens = min(config.max_batch_tokens, longest * config.max_running)
    rows = min(config.max_running, tokens)
    lens, left = [], tokens
    for after in range(rows - 1, -1, -1):
        lens.append(min(longest, left - after))
        left -= lens[-1]
    positions = torch.cat([torch.arange(length) for length in lens])
    ends = torch.tensor(lens).cumsum(0)
    pages = torch.arange(RESERVED_PAGES, RESERVED_PAGES + runner.layout.blocks_for(lens[0]), dtype=torch.int32)
    batch = StepBatch(
        token_ids=torch.zeros(tokens, dtype=torch.int64, device=device),
        positions=positions.to(device),
        slots=(positions + RESERVED_PAGES * runner.layout.page_size).to(device),
        q_starts=torch.cat((torch.zeros(1), ends)).int().to(device),
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        page_table=pages.repeat(rows, 1).to(device),
        logit_rows=(ends - 1).to(device),
        q_lens_host=lens,
        seq_lens_host=lens,
    )
    states = _of_states(runner.layout)
    views = [batch] * (len(runner.layout.groups) - len(states))
    for group in states:
        of_each = torch.arange(RESERVED_PAGES, RESERVED_PAGES + group.size, device=device).repeat(rows, 1)
        views.append(replace(batch, state_sources=of_each, state_targets=of_each))
    return replace(batch, views=tuple(views))


def _of_states(layout: KvLayout) -> list[CacheGroup]:
    """They stand last."""
    return [group for group in layout.groups if group.kind == STATE]


def pages_within(memory: Memory, fraction: float, layout: KvLayout) -> int:
    """Pages that fit into this fraction of the memory. Raises ConfigError when there are none to lend."""
    left = int(memory.total * fraction) - memory.used - memory.step
    pages = max(left, 0) // max(layout.pool_bytes(1), LEAST_PAGE_BYTES)
    if pages <= RESERVED_PAGES + 1:
        gb = 1e9
        raise ConfigError(
            f"memory_fraction = {fraction} of the GPU's {memory.total / gb:.2f} GB leaves {left / gb:.2f} GB for the "
            f"KV pool: {memory.used / gb:.2f} GB are used, by weights and other programs, and the largest step needs "
            f"{memory.step / gb:.2f} GB. Raise memory_fraction, lower max_batch_tokens, or free the GPU"
        )
    return pages
