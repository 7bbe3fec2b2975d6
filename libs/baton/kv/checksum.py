"""Checksums of pages, computed by the source when it announces and by the reader when the bytes have arrived.

XXH3-64, seeded by the place of the page so that swapped pages differ, guards against mistakes, not against attackers.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64_intdigest

from baton.kv.memory import PoolMemory


def pages_checksum(
    pool: PoolMemory, layer_start: int, layer_end: int, first_index: int, page_ids: Iterable[int]
) -> int:
    """XOR over layers [layer_start, layer_end) and pages of XXH3-64(page bytes, seed = layer << 32 | index).

    `index` counts from `first_index`, the place of the first page in the request. Never 0 in practice: 0 means "off".
    """
    page_bytes = pool.layout.page_bytes
    pages = [(index, page * page_bytes) for index, page in enumerate(page_ids, first_index)]
    checksum = 0
    for layer in range(layer_start, layer_end):
        start = pool.offset(layer, 0)
        view = pool.buffer[start : start + pool.pages * page_bytes]
        for index, at in pages:
            checksum ^= xxh3_64_intdigest(view[at : at + page_bytes], layer << 32 | index)
    return checksum
