"""How many threads a worker computes with: what the host offers it, divided among those that share it.

Asked while a worker starts, before anything numeric is loaded. Knows nothing of what is computed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MANY_CORES = 8


@dataclass(frozen=True, slots=True)
class Cores:
    """What this process may compute on."""

    logical: int  # by its affinity
    physical: int  # of different cores among those: two threads of one core share its arithmetic units
    quota: float = math.inf  # CPU seconds per second that its cgroup, and those above it, allow

    @property
    def count(self) -> int:
        """Threads that can run at full speed at the same time, at least 1."""
        return max(1, int(min(self.physical, self.quota)))

    def __str__(self) -> str:
        quota = "" if math.isinf(self.quota) else f", quota {self.quota:g}"
        return f"{self.physical} cores ({self.logical} hardware threads{quota})"


def available(root: Path = Path("/")) -> Cores:
    """By this process's affinity and what Linux tells below `root`, in /proc and /sys; elsewhere all CPUs there are."""
    if not hasattr(os, "sched_getaffinity"):
        count = os.cpu_count() or 1
        return Cores(count, count)
    return within(os.sched_getaffinity(0), root)


def within(allowed: set[int], root: Path = Path("/")) -> Cores:
    """What the CPUs with these numbers are, and what the cgroup of this process allows."""
    siblings = {
        _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or cpu for cpu in allowed
    }
    return Cores(len(allowed), len(siblings), min(_quotas(root), default=math.inf))


def worker_threads(workers: int, cores: Cores) -> int:
    """Compute threads of one of `workers` on a host with these cores.

    Workers get cores of their own, and one core, of many two, is left to event loops and to the services beside them:
    threads of a step wait for each other many times, and where one of them waits for a core, all do.
    """
    beside = 1 if cores.count < _MANY_CORES else 2
    return max(1, (cores.count - beside) // max(1, workers))


def _quotas(root: Path) -> Iterator[float]:
    """The limits of the process's cgroup and of all above it: unified hierarchy, or version 1's `cpu` controller."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        inner = PurePosixPath(group.lstrip("/"))
        if number == "0":
            base = root / "sys/fs/cgroup"
            yield from (_ratio(_read(base / folder / "cpu.max").split()) for folder in (inner, *inner.parents))
        elif "cpu" in controllers.split(","):
            base = root / "sys/fs/cgroup/cpu"
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            for folder in (inner, *inner.parents):
                yield _ratio([_read(base / folder / file).strip() for file in files])


def _ratio(parts: list[str]) -> float:
    """CPU seconds per second of quota and period; "max", -1 and what cannot be read are no limit."""
    try:
        quota, period = map(int, parts)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
