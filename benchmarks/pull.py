"""What a prefix costs that another worker holds: pulled from there, and computed anew, by turns.

    python benchmarks/pull.py [--model PATH] [--tokens 256,1024,2048] [--transport ucx] [--json FILE]

Two prefill workers with their agents, each in a process of its own; this program stands where a router would. Every
prompt is new: the first worker computes it, then the second one gets it with 16 tokens more, told to pull, or not.
Reported is the time to the second worker's token, and what the pull itself took by the worker's own measurement.
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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from baton.cli.bench.report import document, settings_of, write_json
from baton.core.attempt import Attempt
from baton.core.sampling import SamplingParams
from baton.rpc.convert import layout_from_pb, sampling_to_pb
from baton.rpc.v1 import worker_pb2 as pb
from baton.testing.checkpoints import make_checkpoint
from baton.testing.driven_worker import DrivenWorker, baton_command

SUFFIX_TOKENS = 16


async def first_token_s(worker: DrivenWorker, prompt: list[int], number: int, pull: pb.Pull | None = None) -> float:
    """Run the prompt for one token; seconds from the assignment to it."""
    assign = pb.Assign(
        token_ids=prompt,
        prompt_tokens=len(prompt),
        sampling=sampling_to_pb(SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)),
        run_all=pb.RunAll(),
        pull=pull,
    )
    start = time.perf_counter()
    ref = await worker.assign(Attempt(f"{worker.description.worker_id}-{len(prompt)}-{number}"), assign)
    return await worker.next_token_at(ref) - start


@asynccontextmanager
async def pair(model: str, given: argparse.Namespace) -> AsyncIterator[tuple[DrivenWorker, DrivenWorker]]:
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--model={model}", f"--kv-memory-bytes={given.pool_mib << 20}"]
        agent_flags, command = [f"--transport={given.transport}"], [*baton_command(), "prefill"]
        workers = [
            DrivenWorker(Path(folder), name, given.port + n, command, flags, agent_flags)
            for n, name in enumerate(("first", "second"))
        ]
        try:
            await asyncio.gather(*(worker.connect() for worker in workers))
            yield workers[0], workers[1]
        finally:
            for worker in workers:
                worker.stop()


async def measure(
    first: DrivenWorker, second: DrivenWorker, tokens: int, repeats: int, choose: random.Random
) -> dict[str, Any]:
    times: dict[bool, list[float]] = {True: [], False: []}
    pulls: list[tuple[float, float]] = []
    for number in range(2 * repeats + 2):
        with_pull = number % 2 == 0
        prompt = [choose.randrange(10, 400) for _ in range(tokens + SUFFIX_TOKENS)]
        await first_token_s(first, prompt[:tokens], number)
        taken = await first_token_s(second, prompt, number, first.holding(tokens) if with_pull else None)
        if number >= 2:  # the first of each warms up
            times[with_pull].append(taken)
        if number >= 2 and with_pull:
            pulls.append((second.load.pull_wait_s, second.load.pull_bytes_per_s))
    layout = layout_from_pb(first.description.layout)
    pull_s, compute_s = (statistics.median(times[kind]) for kind in (True, False))
    return {
        "tokens": tokens,
        "bytes": layout.layers * layout.page_bytes * (tokens // layout.page_size),
        "pull_s": pull_s,
        "compute_s": compute_s,
        "ratio": compute_s / pull_s,
        "wait_s": statistics.median(wait for wait, _ in pulls),
        "bytes_per_s": statistics.median(rate for _, rate in pulls),
        "extend_tokens_per_s": second.load.extend_tokens_per_s,
    }


async def run(model: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    choose = random.Random(given.seed)
    async with pair(model, given) as (first, second):
        return [await measure(first, second, tokens, given.repeats, choose) for tokens in given.tokens]


def table(found: list[dict[str, Any]]) -> str:
    lines = ["tokens   pulled MB   first token, pulled / computed, ms   ratio   wait ms   link MB/s"]
    lines += [
        f"{row['tokens']:6}   {row['bytes'] / 1e6:9.1f}   {row['pull_s'] * 1e3:19.1f} / {row['compute_s'] * 1e3:<13.1f}"
        f"   {row['ratio']:5.1f}   {row['wait_s'] * 1e3:7.1f}   {row['bytes_per_s'] / 1e6:9.0f}"
        for row in found
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="", help="checkpoint (default: a random one)")
    add("--tokens", default="256,1024,2048", help="lengths of the prefix (%(default)s)")
    add("--repeats", type=int, default=7, help="of each kind and length (%(default)s)")
    add("--transport", default="auto", choices=("auto", "ucx", "tcp"))
    add("--pool-mib", type=int, default=512, help="KV pool of each worker (%(default)s)")
    add("--port", type=int, default=7311, help="two ports of this host from here on (%(default)s)")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="write the figures")
    given = parser.parse_args()
    given.tokens = [int(tokens) for tokens in given.tokens.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(
            make_checkpoint(
                Path(folder) / "model", layers=12, hidden=512, heads=8, kv_heads=4, intermediate=1536, vocab=512,
                max_position=8192, dtype="bfloat16",
            )
        )  # fmt: skip
        found = asyncio.run(run(model, given))
    print(table(found))
    if given.json:
        settings = settings_of(given)
        write_json(given.json, document({"pull": found}, command=sys.argv, settings=settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
