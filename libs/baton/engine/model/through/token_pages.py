"""Pages that keep the ids of a row's tokens and nothing else: exact, whatever a model computes in.

An id is 32 bits, of which the planes of a page have one half each, so that whoever moves pages by planes and tokens
(baton.kv.reshard) moves ids whole.
"""

from __future__ import annotations

import torch

from baton.core.layout import RAW, KvLayout
from baton.engine.model.through.attention import Shape

_PLANES, _HALF_BYTES = 2, 2
SHAPE = Shape(layers=1, heads=1, kv_heads=1, head_dim=_HALF_BYTES, windows=(None,), stored=RAW)


class TokenPages:
    """A pool of SHAPE, whose memory stays the caller's."""

    def __init__(self, layout: KvLayout) -> None:
        self._page_size = layout.page_size
        self._pages = torch.empty(0)

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._pages = pool[0]  # [pages, planes, page_size, 1, bytes]

    def write(self, slots: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Ids [T] to slots [T]."""
        octets = token_ids.to(torch.int32).view(torch.uint8).view(-1, _PLANES, 1, _HALF_BYTES)
        self._pages[slots // self._page_size, :, slots % self._page_size] = octets

    def read(self, page_table: torch.Tensor, count: int) -> torch.Tensor:
        """int64 [count]: the first ids of a row with this page table."""
        pages = self._pages[page_table[: -(-count // self._page_size)].long()]
        octets = pages.transpose(1, 2).reshape(-1, _PLANES * _HALF_BYTES)[:count]
        return octets.contiguous().view(torch.int32).flatten().long()
