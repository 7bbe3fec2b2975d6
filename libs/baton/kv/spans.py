"""Which bytes a read moves: layers x pages as runs, neighbouring pages as one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from baton.kv.memory import PoolMemory
from baton.kv.operation import Read


def spans(read: Read, pool: PoolMemory, source_pages: int, largest_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(offset in the own pool, bytes, offset in the source's pool), in order of layers, then of pages.

    Pages that are neighbours in both pools are one run, of `largest_bytes` at most unless a page is larger.
    """
    size = pool.layout.page_bytes
    layers = np.arange(read.layers.start, read.layers.stop, dtype=np.int64)[:, None]
    local = (layers * pool.pages + read.local_pages).ravel()
    remote = (layers * source_pages + read.remote_pages).ravel()
    begins = (np.diff(local, prepend=-2) != 1) | (np.diff(remote, prepend=-2) != 1)
    begins[:: max(1, largest_bytes // size)] = True
    at = np.flatnonzero(begins)
    sizes = np.diff(at, append=len(local)) * size
    return zip((local[at] * size).tolist(), sizes.tolist(), (remote[at] * size).tolist(), strict=True)
