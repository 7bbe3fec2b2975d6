"""The paged KV pool: its memory, and which of its pages are free.

A page is lent by `PageAllocator.allocate` and belongs to whoever got it (a request, or the radix cache) until `free`.
The pool knows neither requests nor tokens; the ledger (baton.engine.ledger) decides who gets pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from baton.core.errors import ConfigError, InternalError
from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.engine.elements import TORCH_DTYPES

LEAST_PAGE_BYTES = 1 << 10  # as which a smaller page counts: what the host keeps of it beside, once it is cached


class PageAllocator:
    """Free list of page ids: O(1) per page. Pages below RESERVED_PAGES, and the last `spare` ones, are never lent.

    Every page has a generation, a uint32 that grows by one each time the page is lent: (page id, generation) names
    one use of a page, so a reader can tell that a page was given to somebody else. `generations`: memory of one uint32
    per page to count in, that others may watch (baton.kv.generations). Not thread-safe.
    """

    def __init__(self, pages: int, spare: int = 0, generations: npt.NDArray[np.uint32] | None = None) -> None:
        kept = RESERVED_PAGES + spare
        if pages <= kept:
            raise ConfigError(f"the pool has {pages} pages; it needs more than the {kept} that are not lent")
        self.pages = pages
        self._end = pages - spare
        self._free = list(range(self._end - 1, RESERVED_PAGES - 1, -1))
        self._lent = bytearray(pages)
        self._generations = np.zeros(pages, dtype=np.uint32) if generations is None else generations

    @property
    def usable(self) -> int:
        """Pages that can be lent at all."""
        return self._end - RESERVED_PAGES

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Lend `count` pages. Raises InternalError when fewer are free: callers look first."""
        if count > len(self._free):
            raise InternalError(f"{count} pages wanted, {len(self._free)} are free")
        cut = len(self._free) - count
        pages = self._free[cut:]
        del self._free[cut:]
        pages.reverse()
        self._generations[pages] += 1
        for page in pages:
            self._lent[page] = 1
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Take pages back. Raises InternalError on a page that is not lent, reserved or unknown."""
        for page in pages:
            if not RESERVED_PAGES <= page < self._end:
                raise InternalError(f"page {page} cannot be freed: pages {RESERVED_PAGES}..{self._end - 1} can")
            if not self._lent[page]:
                raise InternalError(f"page {page} was freed twice")
            self._lent[page] = 0
            self._free.append(page)

    def generations(self, pages: Sequence[int]) -> list[int]:
        """Current generation of each page."""
        return self._generations[pages].tolist() if len(pages) else []

    def lent(self) -> set[int]:
        """All lent pages; walks the pool, for audits."""
        return {page for page, flag in enumerate(self._lent) if flag}


class KvPool:
    """Memory of a pool as one tensor `[layers, pages, 2, page_size, kv_heads, head_dim]`, and its allocator.

    `buffer` is writable memory of at least `layout.pool_bytes(pages)` bytes, such as the mmap of a memfd that the
    agent maps too; the pool keeps a reference, the caller keeps ownership. Without one the pool has memory of its own
    on `device`, zeroed. The last `spare` pages are lent to nobody. `generations`: see PageAllocator.
    Raises ConfigError when the buffer is too small or read-only.
    """

    def __init__(
        self,
        layout: KvLayout,
        pages: int,
        buffer: Any | None = None,
        device: torch.device | str = "cpu",
        spare: int = 0,
        generations: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        self.layout = layout
        self.allocator = PageAllocator(pages, spare, generations)
        dtype = TORCH_DTYPES[layout.dtype]
        shape = (layout.layers, pages, 2, layout.page_size, layout.kv_heads, layout.head_dim)
        if buffer is None:
            self.tensor = torch.zeros(shape, dtype=dtype, device=device)
            return
        view = memoryview(buffer)
        wanted = layout.pool_bytes(pages)
        if view.nbytes < wanted:
            raise ConfigError(f"the pool's memory has {view.nbytes} bytes; {pages} pages need {wanted}")
        if view.readonly:
            raise ConfigError("the pool's memory is read-only")
        elements = wanted // dtype.itemsize
        self.tensor = torch.frombuffer(buffer, dtype=dtype, count=elements).view(shape)
