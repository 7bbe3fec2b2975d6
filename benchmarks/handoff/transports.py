"""How fast each transport moves scattered pages between two processes of this host, next to a plain memcpy.

    python benchmarks/handoff/transports.py            # about 20 s

One read is 64 MiB, pages of 4 layers in random places on both sides. Best of the repeats; CPU is of both processes.
`ucx over tcp` is what two hosts without RDMA have, `ucx` what UCX chooses on one host.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time

import numpy as np

from baton.core.layout import KvLayout
from baton.kv.checksum import pages_checksum
from baton.kv.memory import PoolMemory
from baton.kv.nixl import NixlTransport
from baton.kv.tcp import TcpTransport
from baton.kv.transport import Transport

LAYERS = 4
READ_BYTES = 64 << 20
HOST = "127.0.0.1"
KINDS = {"ucx": {}, "ucx over tcp": {"UCX_TLS": "tcp"}, "tcp": {}}


def layout(page_kib: int) -> KvLayout:
    return KvLayout("bench", "bfloat16", LAYERS, page_size=16, kv_heads=1, head_dim=page_kib * 16)


def pages(page_kib: int) -> int:
    return READ_BYTES // LAYERS // (page_kib << 10)


def make(kind: str, name: str) -> Transport:
    return TcpTransport(HOST) if kind == "tcp" else NixlTransport(f"{name}-{os.getpid()}", HOST)


def filled_pool(page_kib: int) -> PoolMemory:
    pool = PoolMemory.create(layout(page_kib), 2 * pages(page_kib))
    np.frombuffer(pool.buffer, np.uint8)[:] = 7
    return pool


async def serve(kind: str, page_kib: int) -> None:
    transport = make(kind, "source")
    await transport.register(filled_pool(page_kib))
    transport.serving(1)
    print(transport.address().hex(), flush=True)
    await asyncio.Event().wait()


def places(page_kib: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(np.arange(2, 2 * pages(page_kib)))
    return order[: pages(page_kib)].astype(np.uint32)


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, page_kib: int, repeats: int) -> tuple[float, float]:
    """GB/s of the best read, and CPU seconds per GB of all."""
    command = [sys.executable, __file__, "--serve", kind, "--page-kib", str(page_kib)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as source:
        try:
            assert source.stdout is not None
            address = bytes.fromhex(source.stdout.readline())
            return asyncio.run(read_from(source.pid, address, kind, page_kib, repeats))
        finally:
            source.kill()


async def read_from(pid: int, address: bytes, kind: str, page_kib: int, repeats: int) -> tuple[float, float]:
    transport = make(kind, "reader")
    await transport.register(filled_pool(page_kib))
    await transport.add_peer(("source", 1), address, layout(page_kib), 2 * pages(page_kib))
    local, remote = places(page_kib, 1), places(page_kib, 2)
    await transport.read(("source", 1), 0, LAYERS, local, remote)
    best, moved = float("inf"), 0
    cpu_before = cpu_s(pid) + time.process_time()
    for _ in range(repeats):
        started = time.perf_counter()
        moved += await transport.read(("source", 1), 0, LAYERS, local, remote)
        best = min(best, time.perf_counter() - started)
    cpu = cpu_s(pid) + time.process_time() - cpu_before
    await transport.close()
    return READ_BYTES / best / 1e9, cpu / (moved / 1e9)


def local_copies(page_kib: int, repeats: int) -> tuple[float, float, float]:
    """GB/s of one large memcpy, of a page-wise copy between two pools, and of the checksum."""
    source, target = filled_pool(page_kib), filled_pool(page_kib)
    whole = [np.frombuffer(pool.buffer, np.uint8)[:READ_BYTES] for pool in (source, target)]
    copy = best_s(lambda: np.copyto(whole[1], whole[0]), repeats)
    pairs = list(zip(places(page_kib, 1).tolist(), places(page_kib, 2).tolist(), strict=True))

    def page_wise() -> None:
        for layer in range(LAYERS):
            for to, origin in pairs:
                target.page(layer, to)[:] = source.page(layer, origin)

    paged = best_s(page_wise, repeats)
    checked = best_s(lambda: pages_checksum(source, 0, LAYERS, 0, [page for page, _ in pairs]), repeats)
    return READ_BYTES / copy / 1e9, READ_BYTES / paged / 1e9, READ_BYTES / checked / 1e9


def best_s(work: object, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()  # type: ignore[operator]
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--page-kib", type=int, default=32, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.serve, arguments.page_kib))
    print(f"{'GB/s (CPU-s per GB)':22}" + "".join(f"{kib:>10} KiB pages" for kib in (8, 32, 64, 256)))
    for kind, environment in KINDS.items():
        os.environ.update(environment)
        cells = [measure(kind, kib, arguments.repeats) for kib in (8, 32, 64, 256)]
        for name in environment:
            del os.environ[name]
        print(f"{kind:22}" + "".join(f"{rate:>11.2f} ({cpu:4.2f}) " for rate, cpu in cells))
    rows = [local_copies(kib, arguments.repeats) for kib in (8, 32, 64, 256)]
    for name, rates in zip(("memcpy", "memcpy page by page", "checksum"), zip(*rows, strict=True), strict=True):
        print(f"{name:22}" + "".join(f"{rate:>11.2f}        " for rate in rates))


if __name__ == "__main__":
    main()
