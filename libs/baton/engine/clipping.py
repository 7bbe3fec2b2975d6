"""How many numbers of K and V were more than a float8 cache holds, which keeps its largest in their place.

Nothing else says so: the model goes on with smaller numbers, and answers worse. Counted where a CPU writes them, beside
the conversion, where it costs nothing that can be measured; not on a GPU, where it would take kernels of its own. One
count for the process, which has one model.
"""

from __future__ import annotations

import ctypes

import structlog

log = structlog.get_logger(__name__)

CLIPPED_FROM = 464.0  # halfway from the largest number to what would be the next one


class Clipping:
    """A count that kernels add to at `address`, from any thread."""

    def __init__(self) -> None:
        self._count = ctypes.c_int64()
        self._taken = 0

    @property
    def address(self) -> int:
        return ctypes.addressof(self._count)

    def add(self, numbers: int) -> None:
        self._count.value += numbers

    def taken(self) -> int:
        """How many there were since the last call. The first ones are told in the log."""
        count = self._count.value
        new, first = count - self._taken, self._taken == 0
        self._taken = count
        if new and first:
            log.warning(
                "K or V is more than the float8 cache holds, and was cut off: use kv_cache_dtype = auto, or a "
                "checkpoint that brings k_scale and v_scale",
                numbers=new,
            )
        return new


CLIPPING = Clipping()
