"""How many pages the pool of an engine gets. Asked once, when its model is loaded."""

from __future__ import annotations

from baton.core.errors import ConfigError
from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.engine.bounded import most_blocks, pages_needed
from baton.engine.cuda.memory import measure, pages_within
from baton.engine.loading import LoadedRunner
from baton.engine.plan import EngineConfig
from baton.engine.pool import LEAST_PAGE_BYTES
from baton.engine.states import state_pages

DEFAULT_BYTES = 256 << 20  # of a pool in host memory
DEFAULT_STATES = 8  # which it holds at least, where layers keep states


def pool_pages(runner: LoadedRunner, config: EngineConfig, kv_memory_bytes: int, memory_fraction: float) -> int:
    """Pages that fit into `kv_memory_bytes`; 0: into 256 MiB on a CPU, or what eight states need if that is more, and
    on a GPU into what `memory_fraction` of its memory leaves for them. Raises ConfigError when they are too few for the
    shortest request. On a GPU this may run a step."""
    layout = runner.layout
    page_bytes = max(layout.pool_bytes(1), LEAST_PAGE_BYTES)
    least = RESERVED_PAGES + pages_needed(layout, 1, config.step_tokens(config.overlaps(runner.device.type)))
    if not kv_memory_bytes and runner.device.type == "cuda":
        pages, told = pages_within(measure(runner, config), memory_fraction, layout), f"{memory_fraction=}"
    else:
        room = kv_memory_bytes or max(DEFAULT_BYTES, (least + DEFAULT_STATES * state_pages(layout)) * page_bytes)
        pages, told = room // page_bytes, f"kv_memory_bytes = {room}"
    if pages < least:
        raise ConfigError(
            f"{told} holds {pages} pages of {page_bytes} bytes; {least} are the least, {least * page_bytes} bytes"
        )
    return pages


def request_blocks(layout: KvLayout, pages: int, config: EngineConfig, device: str) -> int:
    """Blocks of the longest request that `pages`, the reserved ones not counted, are enough for."""
    return most_blocks(layout, pages, config.step_tokens(config.overlaps(device)))
