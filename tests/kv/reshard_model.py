"""What a KV cache means, whatever its layout: one number for each (layer, plane, token, head, dim) of a request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.kv.memory import PoolMemory
from baton.kv.reshard.landing import elements


def layout(
    heads: int = 4, ranks: int = 1, rank: int = 0, *, page_size: int = 8, dtype: str = "float32", **changes: object
) -> KvLayout:
    """A rank's layout of the model of these tests. `kind` latent has one head, on all ranks."""
    held = max(1, heads // ranks)
    made = KvLayout("tiny", dtype, 3, page_size, held, 4, tensor_parallel=ranks, rank=rank, total_kv_heads=heads)
    return replace(made, **changes)  # type: ignore[arg-type]


def cache(shape: KvLayout, tokens: int) -> np.ndarray:
    """`[layers, planes, tokens, total heads, dim]`: all numbers differ."""
    size = (shape.layers, shape.planes, tokens, shape.total_kv_heads, shape.head_dim)
    return np.arange(1, 1 + np.prod(size), dtype=np.uint32).reshape(size)


def lay_out(values: np.ndarray, shape: KvLayout, pool: np.ndarray, page_ids: np.ndarray, tokens: range) -> None:
    """Write tokens of `values` into a pool of elements, one by one: page_ids[0] is that of `tokens.start`."""
    first_page = tokens.start // shape.page_size
    heads = shape.rank * shape.total_kv_heads // shape.tensor_parallel
    for token in tokens:
        page = page_ids[token // shape.page_size - first_page]
        for head in range(shape.kv_heads):
            pool[:, page, :, token % shape.page_size, head] = values[:, :, token, heads + head]


class RequestPool:
    """A pool with the pages of one request at random places."""

    def __init__(self, shape: KvLayout, pages: int, random: np.random.Generator) -> None:
        self.layout = shape
        self.memory = PoolMemory.create(shape, RESERVED_PAGES + pages + 3)
        self.elements = elements(self.memory)
        free = np.arange(RESERVED_PAGES, self.memory.pages, dtype=np.uint32)
        self.page_ids = random.permutation(free)[:pages]
