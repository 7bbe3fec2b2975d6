"""What a client waits for by length of its prompt: handed over in the pipeline, in bulk, or not at all.

    make bench NAME=handoff/latency                        # some minutes

Workers with one thread each, in processes of their own, driven without a router: a prefill worker, one that announces
its pages at the end only, a decode worker for both, and a unified one. Prompts are new each time; the three take
turns, and the workers whose turn it is not do nothing. Reported are medians of the time to the first token, and of the
gap from the first token to the second, in which handed-over requests change workers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
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
from baton.rpc.convert import sampling_to_pb
from baton.rpc.v1 import worker_pb2 as pb
from baton.testing.checkpoints import make_checkpoint
from baton.testing.driven_worker import DrivenWorker, baton_command

WAYS = ("pipeline", "bulk", "unified")
NEW_TOKENS = 8
TOKEN_IDS = (100, 500)  # ordinary tokens of any model
MODEL = {  # 100 M Llama in bf16, 12 KiB of KV cache per token, as in the other benchmarks
    "layers": 12, "hidden": 768, "heads": 12, "kv_heads": 4, "head_dim": 64, "intermediate": 2048, "vocab": 32_000,
    "max_position": 8192, "dtype": "bfloat16", "tied": True,
}  # fmt: skip


@asynccontextmanager
async def workers(folder: Path, model: str, given: argparse.Namespace) -> AsyncIterator[dict[str, DrivenWorker]]:
    """By way, and "decode" for those that hand over."""
    flags = [f"--model={model}", f"--kv-memory-bytes={given.pool_mib << 20}", "--threads=1"]
    agent, baton = [f"--transport={given.transport}"], baton_command()
    bulk = [sys.executable, "-P", str(Path(__file__).with_name("bulk_prefill.py"))]
    commands = {
        "pipeline": ([*baton, "prefill"], agent),
        "bulk": (bulk, agent),
        "decode": ([*baton, "decode"], agent),
        "unified": ([*baton, "unified"], None),
    }
    with contextlib.ExitStack() as stack:
        started = {}
        for n, (name, (command, agent_flags)) in enumerate(commands.items()):
            started[name] = DrivenWorker(folder, name, given.port + n, command, flags, agent_flags)
            stack.callback(started[name].stop)
        for worker in started.values():
            await worker.connect()
        yield started


async def ask(group: dict[str, DrivenWorker], way: str, prompt: list[int], name: str) -> tuple[float, float]:
    """Time to first token, and from the first to the second, in seconds."""
    attempt = Attempt(name)
    common = {
        "token_ids": prompt,
        "prompt_tokens": len(prompt),
        "sampling": sampling_to_pb(SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)),
    }
    start = time.perf_counter()
    if way == "unified":
        first_of = second_of = group[way]
        first_ref = second_ref = await first_of.assign(attempt, pb.Assign(**common, run_all=pb.RunAll()))
    else:
        first_of, second_of = group[way], group["decode"]
        source = first_of.description
        fetch = pb.Fetch(worker_id=source.worker_id, worker_epoch=source.epoch, agent=source.agent)
        second_ref = await second_of.assign(attempt, pb.Assign(**common, fetch=fetch))
        offer = pb.Offer(decode_worker_id=second_of.description.worker_id)
        first_ref = await first_of.assign(attempt, pb.Assign(**common, offer=offer))
    first_at = await first_of.next_token_at(first_ref)
    second_at = await second_of.next_token_at(second_ref)
    for _ in range(NEW_TOKENS - 2):
        await second_of.next_token_at(second_ref)
    return first_at - start, second_at - first_at


async def measure(group: dict[str, DrivenWorker], tokens: int, turns: int, choose: random.Random) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn, way in itertools.product(range(turns + 1), WAYS):
        prompt = [choose.randrange(*TOKEN_IDS) for _ in range(tokens)]
        took = await ask(group, way, prompt, f"{way}-{tokens}-{turn}")
        if turn:  # the first one of each warms up
            found[way].append(took)
    row: dict[str, Any] = {"tokens": tokens, "turns": turns}
    for way, times in found.items():
        row[way] = {
            "ttft_s": statistics.median(first for first, _ in times),
            "gap_s": statistics.median(gap for _, gap in times),
        }
    return row


def line(row: dict[str, Any]) -> str:
    cells = (f"{way} {row[way]['ttft_s'] * 1e3:8.1f} / {row[way]['gap_s'] * 1e3:6.1f}" for way in WAYS)
    return f"{row['tokens']:5} tokens   first token / gap to the second, ms:   {'   '.join(cells)}"


async def run(model: str, folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    choose, rows = random.Random(given.seed), []
    async with workers(folder, model, given) as group:
        for tokens in given.lengths:
            rows.append(await measure(group, tokens, given.turns, choose))
            print(line(rows[-1]), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="", help="checkpoint (default: a random one of 100 M parameters)")
    add("--lengths", default="128,512,1024,2048", help="tokens of the prompts (%(default)s)")
    add("--turns", type=int, default=5, help="of each way and length (%(default)s)")
    add("--transport", default="auto", choices=("auto", "ucx", "ucxx", "tcp"))
    add("--pool-mib", type=int, default=256, help="KV pool of each worker (%(default)s)")
    add("--port", type=int, default=7351, help="four ports of this host from here on (%(default)s)")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="write the figures")
    given = parser.parse_args()
    given.lengths = [int(length) for length in given.lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(make_checkpoint(Path(folder) / "model", **MODEL))
        rows = asyncio.run(run(model, Path(folder), given))
    if given.json:
        settings = settings_of(given)
        write_json(given.json, document({"latency": rows}, command=sys.argv, settings=settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
