"""The system under chaos: `baton up` with two prefill and two decode workers, and the hands that strike it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from baton.kv.faults import orders_path
from baton.runtime.environ import cache_dir
from baton.testing.checkpoints import make_checkpoint
from baton.testing.up_process import Up, up
from tools.chaos import network
from tools.chaos.judge import Struck
from tools.chaos.plan import Kind

MODEL = "chaos"
POOL = "40MiB"  # a handful of long prompts: pages are short, evicted and computed anew all the time
BACK_TIMEOUT_S = 240.0  # what comes up may be struck again and again
VARIABLES = {
    "BATON_KV_AGENT_FAULT_INJECTION": "true",
    "BATON_WORKER_DETERMINISTIC": "true",  # answers are equal to the last bit, however they were cut and moved
    "OMP_NUM_THREADS": "1",
}
# In this order the answer to "is all given back?" is asked; each must come to 0 when nothing runs.
_BALANCED = {
    "prefill": ('baton_worker_pages{state="lent"}', "baton_worker_running_requests", "baton_worker_waiting_requests"),
    "decode": ('baton_worker_pages{state="lent"}', "baton_worker_running_requests", "baton_worker_waiting_requests"),
    "kv-agent": ("baton_kv_agent_leases", "baton_kv_agent_reads_in_flight"),
    "router": ("baton_router_in_flight_requests", "baton_router_queued_requests"),
}


class Cluster:
    """A running system. `strike` returns when the fault is over; many may be under way."""

    def __init__(self, system: Up, folder: Path) -> None:
        self.system = system
        self._runtime = folder / "run"
        self._partitions = asyncio.Lock()  # the kernel's rules are added and removed one run at a time

    @property
    def names(self) -> list[str]:
        return [service["name"] for service in self.system.services()]

    @property
    def agents(self) -> list[str]:
        return [service["name"] for service in self.system.services("kv-agent")]

    def kind(self, name: str) -> str:
        return str(self.system.service(name)["kind"])

    async def strike(self, struck: Struck) -> None:
        """Carry the fault out and write down when."""
        fault = struck.fault
        try:
            if fault.kind.by_agent:
                await self._order(struck)
            elif fault.kind is Kind.THROTTLE:
                await self._throttle(struck)
            elif fault.kind is Kind.PARTITION:
                await self._partition(struck)
            else:
                await self._signal(struck)
        except (ProcessLookupError, FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            struck.note = f"{fault.target} was not running"
        struck.ended_at = time.monotonic()

    async def all_back(self, timeout_s: float = BACK_TIMEOUT_S) -> None:
        """Until every process is ready. Raises AssertionError when one does not come back."""
        for name in self.names:
            await self._wait(partial(self._is_ready, name), f"{name} is ready", timeout_s)

    async def unbalanced(self, timeout_s: float = 40.0) -> list[str]:
        """What is still held although nothing runs, when it is not given back in time."""
        found = []
        for kind, names in _BALANCED.items():
            for service, name in product(self.system.services(kind), names):
                try:
                    await self._wait(partial(self._is_zero, service, name), name, timeout_s)
                except AssertionError:
                    found.append(f"{service['name']}: {name} is {self.system.metric(service, name):g}, not 0")
        return found

    def own_memory_mb(self) -> dict[str, float]:
        """Anonymous resident memory by process, pools not included."""
        found = {}
        for service in self.system.services():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):
                lines = Path(f"/proc/{service['pid']}/status").read_text().splitlines()
                kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
                found[service["name"]] = kilobytes / 1024
        return found

    def outcomes(self) -> dict[str, int]:
        """Failed handoffs by kind and faults carried out to order, out of the system's log."""
        counted: dict[str, int] = {}
        for line in self.system.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if record.get("event") == "handoff failed":
                    name = f"handoff failed: {record['reason'].partition(':')[0]}"
                elif record.get("event") == "fault injected":
                    name = f"injected: {record['fault']}"
                else:
                    continue
                counted[name] = counted.get(name, 0) + 1
        return counted

    async def _order(self, struck: Struck) -> None:
        worker = struck.fault.target.removesuffix("-agent")
        order = {"fault": struck.fault.kind.value, "seconds": struck.fault.for_s}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a stopped agent does not empty its queue
            sock.sendto(json.dumps(order).encode(), str(orders_path(self._runtime / f"{worker}.sock")))
        struck.at = time.monotonic()
        if struck.fault.kind is Kind.CUT:
            await asyncio.sleep(struck.fault.for_s)

    async def _throttle(self, struck: Struck) -> None:
        async with self._partitions:
            network.throttle()
            struck.at = time.monotonic()
            await asyncio.sleep(struck.fault.for_s)
            network.unthrottle()

    async def _partition(self, struck: Struck) -> None:
        pid = self._pid(struck.fault.target)
        async with self._partitions:
            partition = await asyncio.to_thread(network.Partition, [pid])
            struck.at = time.monotonic()
            try:
                await asyncio.sleep(struck.fault.for_s)
            finally:
                await asyncio.to_thread(partition.heal)

    async def _signal(self, struck: Struck) -> None:
        name, kind = struck.fault.target, struck.fault.kind
        starts, pid = self.system.service(name)["starts"], self._pid(name)
        struck.at = time.monotonic()
        if kind is Kind.STOP:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(struck.fault.for_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            return
        os.kill(pid, signal.SIGKILL if kind is Kind.KILL else signal.SIGTERM)
        await self._wait(lambda: self._is_back(name, starts), f"{name} is back", BACK_TIMEOUT_S)
        struck.back_s = time.monotonic() - struck.at

    def _is_ready(self, name: str) -> bool:
        return self.system.service(name)["phase"] == "ready"

    def _is_zero(self, service: dict[str, Any], metric: str) -> bool:
        return self.system.metric(service, metric) == 0

    def _is_back(self, name: str, starts: int) -> bool:
        service = self.system.service(name)
        return service["starts"] > starts and service["phase"] == "ready"

    def _pid(self, name: str) -> int:
        pid = self.system.service(name)["pid"]
        if pid is None:
            raise ProcessLookupError(name)
        return int(pid)

    async def _wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        await asyncio.to_thread(self.system.wait, condition, what, timeout_s)


@contextmanager
def cluster(folder: Path, transport: str) -> Iterator[Cluster]:
    """Start the system in `folder`; `transport` as of `baton up`, or `ucx-tcp`: UCX without cross-memory attach."""
    checkpoint = make_checkpoint(
        folder / "model", "llama", layers=4, hidden=256, heads=8, kv_heads=4, max_position=8192
    )
    shared_cache = {"XDG_CACHE_HOME": str(cache_dir().parent)}  # kernels are compiled once for this machine
    variables = {**VARIABLES, **shared_cache, **({"UCX_TLS": "tcp,self"} if transport == "ucx-tcp" else {})}
    arguments = (
        "--prefill=2", "--decode=2", f"--model={checkpoint}", f"--served-name={MODEL}", f"--kv-memory-bytes={POOL}",
        f"--transport={transport.partition('-')[0]}", "--log-format=json",
    )  # fmt: skip
    with up(folder, *arguments, variables=variables) as system:
        yield Cluster(system, folder)
