"""What pulls have cost this worker lately: the price by which the router decides on the next ones."""

from __future__ import annotations

import time
from collections.abc import Callable

SMOOTHING = 0.25  # weight of the newest measurement
FORGET_S = 30.0  # without a pull for so long nothing is known: a price that keeps everybody away must not last for ever


class PullMeter:
    """Smoothed `wait_s` (from asking to the first read) and `bytes_per_s` (from there to verified); 0 = unknown."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wait_s = 0.0
        self._bytes_per_s = 0.0
        self._measured_at = -FORGET_S

    @property
    def wait_s(self) -> float:
        return 0.0 if self._forgotten else self._wait_s

    @property
    def bytes_per_s(self) -> float:
        return 0.0 if self._forgotten else self._bytes_per_s

    def came(self, bytes_read: int, wait_s: float, read_s: float) -> None:
        """A pull has brought `bytes_read`."""
        self._waited(wait_s)
        if bytes_read and read_s > 0:
            self._bytes_per_s = _smooth(self._bytes_per_s, bytes_read / read_s)

    def failed(self, after_s: float) -> None:
        """A pull has brought nothing: its time was a wait."""
        self._waited(after_s)

    def _waited(self, wait_s: float) -> None:
        if self._forgotten:
            self._wait_s = self._bytes_per_s = 0.0
        self._wait_s = _smooth(self._wait_s, wait_s)
        self._measured_at = self._clock()

    @property
    def _forgotten(self) -> bool:
        return self._clock() - self._measured_at >= FORGET_S


def _smooth(old: float, new: float) -> float:
    return old + SMOOTHING * (new - old) if old else new
