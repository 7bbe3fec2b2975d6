"""What a prefix costs that is in memory or on disk of the worker's agent: brought back, and computed anew, by turns.

    python benchmarks/tier/compare.py [--model PATH] [--tokens 256,1024,2048] [--json FILE]

First the tiers alone, against copies of memory and plain files (copies.py). Then two prefill workers with their agents,
each in a process of its own, driven by this program: below the pool of one is memory, below that of the other as much
memory as the pool has, and a disk. A prompt is a prefix and 16 new tokens; reported is the time to its first token when
the prefix is in the pool, in memory, on disk (the file system's cache having forgotten it), or nowhere. The difference
to the pool is all that bringing a prefix costs, and so the most that could be hidden by bringing it while other layers
are computed.
Without `--model`, a random model of 38 million parameters (bfloat16) is made.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from copies import forget, measure

from baton.cli.bench.report import document, settings_of, write_json
from baton.core.attempt import Attempt
from baton.core.sampling import SamplingParams
from baton.engine.runner import TorchModelRunner
from baton.rpc.convert import sampling_to_pb
from baton.rpc.v1 import worker_pb2 as pb
from baton.testing.checkpoints import make_checkpoint
from baton.testing.driven_worker import DrivenWorker, baton_command

SUFFIX_TOKENS = 16
POOL_PREFIXES = 8  # of the longest ones have room in a pool: with an eighth kept free, one moves in without loss
FLUSH_PREFIXES = 18  # more than a pool and as much memory hold


class Bench:
    """One worker, and prefixes that it has seen: some to be measured, and others that push those out of its pool."""

    def __init__(self, name: str, worker: DrivenWorker, longest: int, repeats: int, choose: random.Random) -> None:
        self.name = name
        self.worker = worker
        self._choose = choose
        self._measured = [self._tokens(longest) for _ in range(repeats)]
        self._others = [self._tokens(longest) for _ in range(FLUSH_PREFIXES)]
        self._requests = 0

    async def fill(self) -> None:
        """Compute all prefixes, once."""
        for prefix in [*self._measured, *self._others]:
            await self._first_token_s(prefix)

    async def flush(self) -> None:
        """Use the others, so that nothing else is in the pool, nor in the memory above the disk."""
        for prefix in self._others:
            await self._first_token_s(prefix + self._tokens(SUFFIX_TOKENS))

    async def held_s(self, number: int, length: int) -> float | None:
        """First token after part of a prefix that this worker has seen; None: it was not all there."""
        computed = self.worker.load.totals.extend_tokens
        taken_s = await self._first_token_s(self._measured[number][:length] + self._tokens(SUFFIX_TOKENS))
        return taken_s if self.worker.load.totals.extend_tokens - computed == SUFFIX_TOKENS else None

    async def unseen_s(self, length: int) -> float:
        return await self._first_token_s(self._tokens(length + SUFFIX_TOKENS))

    def _tokens(self, count: int) -> list[int]:
        return [self._choose.randrange(10, 400) for _ in range(count)]

    async def _first_token_s(self, prompt: list[int]) -> float:
        self._requests += 1
        assign = pb.Assign(
            token_ids=prompt,
            prompt_tokens=len(prompt),
            sampling=sampling_to_pb(SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)),
            run_all=pb.RunAll(),
        )
        start = time.perf_counter()
        ref = await self.worker.assign(Attempt(f"{self.name}-{self._requests}"), assign)
        return await self.worker.next_token_at(ref) - start


@asynccontextmanager
async def benches(model: str, given: argparse.Namespace) -> AsyncIterator[tuple[Bench, Bench]]:
    """The worker with memory below its pool, and the one with a disk."""
    longest = max(given.tokens)
    token_bytes = given.layout.layers * given.layout.page_bytes // given.layout.page_size
    pool_bytes = POOL_PREFIXES * (longest + 4 * SUFFIX_TOKENS) * token_bytes
    much_bytes = 8 * pool_bytes
    tiers = {
        "memory": [f"--host-tier-bytes={much_bytes}"],
        "disk": [
            f"--host-tier-bytes={pool_bytes}",
            f"--disk-tier-path={given.folder / 'disk'}",
            f"--disk-tier-bytes={much_bytes}",
        ],
    }
    choose = random.Random(given.seed)
    flags = [f"--model={model}", f"--kv-memory-bytes={pool_bytes}"]
    workers = {
        name: DrivenWorker(given.folder, name, given.port + n, [*baton_command(), "prefill"], flags, tier)
        for n, (name, tier) in enumerate(tiers.items())
    }
    try:
        await asyncio.gather(*(worker.connect() for worker in workers.values()))
        made = [Bench(name, worker, longest, given.repeats, choose) for name, worker in workers.items()]
        await asyncio.gather(*(bench.fill() for bench in made))
        yield made[0], made[1]
    finally:
        for worker in workers.values():
            worker.stop()


async def first_tokens(memory: Bench, disk: Bench, given: argparse.Namespace) -> list[dict[str, Any]]:
    """By length: medians of the time to the first token, by where the prefix is."""
    rows = []
    token_bytes = given.layout.layers * given.layout.page_bytes // given.layout.page_size
    for length in given.tokens:
        times: dict[str, list[float | None]] = defaultdict(list)
        await memory.flush()
        await disk.flush()
        forget(*(given.folder / "disk").glob("*.kvseg"))
        for number in range(given.repeats):
            times["memory"].append(await memory.held_s(number, length))
            times["pool"].append(await memory.held_s(number, length))
            times["disk"].append(await disk.held_s(number, length))
            times["computed"].append(await memory.unseen_s(length))
        valid = {name: [one for one in taken if one is not None] for name, taken in times.items()}
        median = {f"{name}_s": statistics.median(taken) for name, taken in valid.items()}
        rows.append(
            {
                "tokens": length,
                "bytes": length * token_bytes,
                "samples": {name: len(taken) for name, taken in valid.items()},
                **median,
                "computed_over_memory": median["computed_s"] / median["memory_s"],
                "computed_over_disk": median["computed_s"] / median["disk_s"],
                "hideable_share_memory": 1 - median["pool_s"] / median["memory_s"],
                "hideable_share_disk": 1 - median["pool_s"] / median["disk_s"],
            }
        )
    return rows


async def run(model: str, given: argparse.Namespace) -> dict[str, Any]:
    async with benches(model, given) as (memory, disk):
        rows = await first_tokens(memory, disk, given)
        prices = {
            "host_restore_bytes_per_s": memory.worker.load.host_restore_bytes_per_s,
            "host_restore_wait_s": memory.worker.load.host_restore_wait_s,
            "disk_restore_bytes_per_s": disk.worker.load.disk_restore_bytes_per_s,
            "disk_restore_wait_s": disk.worker.load.disk_restore_wait_s,
            "extend_tokens_per_s": memory.worker.load.extend_tokens_per_s,
        }
        return {"first_token": rows, "prices": prices}


def table(found: dict[str, Any]) -> str:
    lines = [f"{'moved':<24}{'GB/s':>8}   {'limit':<26}{'GB/s':>8}{'share':>8}"]
    lines += [
        f"{row['what']:<24}{row['gb_per_s']:>8.2f}   {row['limit']:<26}{row['limit_gb_per_s']:>8.2f}"
        f"{row['share_of_limit']:>8.0%}"
        for row in found["copies"]
    ]
    lines += [
        "",
        "tokens       MB   first token, ms: pool   memory     disk   computed   computed/memory   computed/disk",
    ]
    lines += [
        f"{row['tokens']:>6}{row['bytes'] / 1e6:>9.1f}{row['pool_s'] * 1e3:>24.1f}{row['memory_s'] * 1e3:>9.1f}"
        f"{row['disk_s'] * 1e3:>9.1f}{row['computed_s'] * 1e3:>11.1f}{row['computed_over_memory']:>18.1f}"
        f"{row['computed_over_disk']:>16.1f}"
        for row in found["first_token"]
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="", help="checkpoint (default: a random one)")
    add("--tokens", default="256,1024,2048", help="lengths of the prefix (%(default)s)")
    add("--repeats", type=int, default=5, help="of each kind and length (%(default)s)")
    add("--copy-mib", type=int, default=128, help="size of the copies of the tiers alone (%(default)s)")
    add("--folder", type=Path, help="where the disk is to be measured (default: the temporary directory)")
    add("--port", type=int, default=7331, help="two ports of this host from here on (%(default)s)")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="write the figures")
    given = parser.parse_args()
    settings = settings_of(given)
    given.tokens = [int(tokens) for tokens in given.tokens.split(",")]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        given.folder = Path(folder)
        model = given.model or str(
            make_checkpoint(
                given.folder / "model", layers=12, hidden=512, heads=8, kv_heads=4, intermediate=1536, vocab=512,
                max_position=8192, dtype="bfloat16",
            )
        )  # fmt: skip
        given.layout = TorchModelRunner.load(model).layout
        found = {"copies": measure(given.layout, given.copy_mib << 20, given.repeats, given.folder)}
        found |= asyncio.run(run(model, given))
    print(table(found))
    if given.json:
        write_json(given.json, document(found, command=sys.argv, settings=settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
