"""What it costs to read pages of another layout, against pages of the own one.

    make bench NAME=handoff/reshard                        # about a minute

One process, two pools, shared memory between them: 1,024 tokens of four layers of a Llama 8B (8 KV heads of 128, pages
of 16 tokens in bfloat16 unless said otherwise), read and verified as an agent does. Contestants take turns; medians.
GB/s are of bytes as the source has them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from baton.cli.bench.machine import commit, hardware
from baton.core.attempt import Attempt
from baton.core.layout import RESERVED_PAGES, KvLayout
from baton.kv.checksum import pages_checksum
from baton.kv.handoff import StartRead
from baton.kv.mapped import MappedTransport
from baton.kv.memory import PoolMemory
from baton.kv.reshard import Plan
from baton.kv_agent.resharding import ReshardedReads

TOKENS = 1024
PLAIN = KvLayout("bench", "bfloat16", layers=4, page_size=16, kv_heads=8, head_dim=128)
HALF = replace(PLAIN, kv_heads=4, tensor_parallel=2)
CASES = {
    "pages of 16 to 16": (PLAIN, PLAIN),
    "pages of 64 to 16": (replace(PLAIN, page_size=64), PLAIN),
    "pages of 16 to 64": (PLAIN, replace(PLAIN, page_size=64)),
    "bfloat16 to float32": (PLAIN, replace(PLAIN, dtype="float32")),
    "float32 to bfloat16": (replace(PLAIN, dtype="float32"), PLAIN),
    "bfloat16 to float8": (PLAIN, replace(PLAIN, dtype="float8_e4m3")),
    "float8 to bfloat16": (replace(PLAIN, dtype="float8_e4m3"), PLAIN),
    "8 heads of one rank to 4": (PLAIN, HALF),
    "4 heads of two ranks to 8": (HALF, PLAIN),
}
Contestant: TypeAlias = Callable[[], Awaitable[int]]


async def contestant(stack: AsyncExitStack, source: KvLayout, own: KvLayout, copier: ThreadPoolExecutor) -> Contestant:
    """What reads all pages of the request once, and returns the bytes."""
    pools, transports = [], []
    for layout in (source, own):
        pool, transport = PoolMemory.create(layout, RESERVED_PAGES + layout.pages_for(TOKENS)), MappedTransport()
        np.frombuffer(pool.buffer, np.uint8)[:] = 7
        stack.callback(pool.close)
        await transport.register(pool)
        stack.push_async_callback(transport.close)
        pools.append(pool)
        transports.append(transport)
    await transports[1].add_peer(("source", 1), transports[0].address(), source, pools[0].pages)
    ids = [np.arange(RESERVED_PAGES, pool.pages, dtype=np.uint32) for pool in pools]
    if source.has_pages_of(own):

        async def read_pages() -> int:
            moved = await transports[1].read(("source", 1), 0, own.layers, ids[1], ids[0])
            pages_checksum(pools[1], 0, own.layers, 0, ids[1].tolist())
            return moved

        return read_pages
    reads = ReshardedReads(pools[1], transports[1], ("source", 1), source, pools[0].pages, 8 << 20, copier)
    stack.callback(reads.close)
    plan = Plan(source, own, 0, TOKENS)
    start = StartRead("", Attempt("bench"), 0, 0, own.layers, 0, ids[1], ids[0], verify=True, plan=plan)

    async def reshard() -> int:
        return (await reads.read(start, plan))[0]

    return reshard


async def measure(turns: int) -> list[dict[str, Any]]:
    """Medians for each case."""
    walls: dict[str, list[float]] = {name: [] for name in CASES}
    cpus: dict[str, list[float]] = {name: [] for name in CASES}
    with ThreadPoolExecutor(1) as copier:
        async with AsyncExitStack() as stack:
            found = {name: await contestant(stack, *pair, copier) for name, pair in CASES.items()}
            for _ in range(turns + 1):
                for name, read in found.items():
                    started, busy = time.perf_counter(), time.process_time()
                    gigabytes = await read() / 1e9
                    walls[name].append(gigabytes / (time.perf_counter() - started))
                    cpus[name].append((time.process_time() - busy) / gigabytes)
    return [
        {
            "case": name,
            "gb_per_s": statistics.median(walls[name][1:]),
            "cpu_s_per_gb": statistics.median(cpus[name][1:]),
        }
        for name in CASES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=31, help="reads of each contestant")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rows = asyncio.run(measure(arguments.turns))
    for row in rows:
        print(f"{row['case']:28} {row['gb_per_s']:6.2f} GB/s {row['cpu_s_per_gb']:6.2f} CPU-s per GB", flush=True)
    if arguments.json:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        result: dict[str, Any] = {"commit": commit(), "when": when, "hardware": hardware(), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
