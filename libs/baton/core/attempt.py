"""Who is meant: requests, their placements, and incarnations of processes."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One placement of a request. `n` grows by one with every new placement."""

    request_id: str
    n: int = 0

    def next(self) -> Attempt:
        return Attempt(self.request_id, self.n + 1)

    def __str__(self) -> str:
        return f"{self.request_id}#{self.n}"


def new_request_id(prefix: str = "req") -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def new_epoch() -> int:
    """Incarnation number of a process: larger than that of any earlier start on this host (nanoseconds since 1970)."""
    return time.time_ns()
