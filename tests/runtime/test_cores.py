"""How many threads a worker takes, from hosts that are folders with the files that Linux would have there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from baton.runtime.cores import Cores, available, within, worker_threads


def host(root: Path, files: dict[str, str], *, siblings: int = 1, cpus: int = 8) -> Path:
    """A host whose CPUs 0, 1, .. form cores of `siblings` neighbours each."""
    for cpu in range(cpus):
        first = cpu // siblings * siblings
        text = f"{first}-{first + siblings - 1}\n" if siblings > 1 else f"{first}\n"
        files = {**files, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_affinity_and_siblings(tmp_path: Path) -> None:
    root = host(tmp_path, {}, siblings=2)
    assert within(set(range(8)), root) == Cores(8, 4)
    assert within({0, 2, 3}, root) == Cores(3, 2)
    assert within({1}, root).count == 1


def test_what_is_not_told_limits_nothing(tmp_path: Path) -> None:
    assert within({0, 1, 5}, tmp_path) == Cores(3, 3)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        (
            {
                "proc/self/cgroup": "0::/pod/worker\n",
                "sys/fs/cgroup/pod/worker/cpu.max": "600000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
            },
            3,
        ),
        # The path is the host's, and what is mounted begins at the container.
        ({"proc/self/cgroup": "0::/kubepods/pod7\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
    ],
)
def test_quotas(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    cores = within(set(range(8)), host(tmp_path, files))
    assert cores == Cores(8, 8, quota)
    assert cores.count == min(8, int(min(quota, 8)))


def test_a_quota_below_one_core_is_one_thread() -> None:
    assert Cores(8, 8, 0.5).count == 1


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [
        (Cores(1, 1), 1, 1), (Cores(2, 2), 1, 1), (Cores(2, 2), 2, 1), (Cores(4, 4), 1, 3), (Cores(4, 4), 2, 1),
        (Cores(6, 6), 2, 2), (Cores(8, 8), 1, 6), (Cores(16, 16), 2, 7), (Cores(16, 8), 2, 3), (Cores(16, 16), 64, 1),
        (Cores(64, 64, 4.0), 1, 3), (Cores(4, 4), 0, 3),
    ],
)  # fmt: skip
def test_workers_share_the_cores_and_leave_some(cores: Cores, workers: int, threads: int) -> None:
    assert worker_threads(workers, cores) == threads


def test_this_host() -> None:
    cores = available()
    assert 1 <= cores.count <= cores.physical <= cores.logical
