"""A gateway under attack: good requests' times and the gateway's memory, before and during thousands of bad ones.

    python benchmarks/gateway/abuse.py                 10,000 bad requests, about two minutes

Behind the gateway is a router without workers, so that what is measured is the gateway. Good requests come from a
process of their own, bad ones from another, `--rate` of them per second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bad_requests import ATTACKS
from compare import HERE, MODEL, RESULTS, VOCABULARY, Server, baton

from baton.testing.checkpoints import make_checkpoint

GOOD_STREAMS, GOOD_TOKENS, GOOD_CHATS = 4, 8, 400
STEP_S = 0.01


def good(server: Server, chats: int) -> subprocess.Popen[str]:
    """Good clients, started; their report comes on stdout."""
    options = {"url": server.url, "model": MODEL, "streams": GOOD_STREAMS, "chats": chats, "tokens": GOOD_TOKENS}
    command = [sys.executable, str(HERE / "load.py"), *(f"--{name}={value}" for name, value in options.items())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def times(process: subprocess.Popen[str]) -> dict[str, float]:
    """Median and 99th percentile of the whole answers, in milliseconds."""
    out, _ = process.communicate(timeout=600)
    whole = sorted(json.loads(out)["whole_s"])
    return {"median": round(statistics.median(whole) * 1e3, 1), "p99": round(whole[int(0.99 * len(whole))] * 1e3, 1)}


async def attack(server: Server, count: int, rate: float) -> dict[str, dict[str, int]]:
    """How many of each kind ended by which status; 0 = without an answer."""
    host, port = server.url.removeprefix("http://").split(":")
    draw = random.Random(11)
    names = list(ATTACKS)
    weights = [ATTACKS[name][0] for name in names]
    ended: dict[str, Counter[int]] = {name: Counter() for name in names}

    async def one(name: str, seed: int) -> None:
        ended[name][await ATTACKS[name][1]((host, int(port)), random.Random(seed))] += 1

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(draw.choices(names, weights)[0], number))
            await asyncio.sleep(draw.expovariate(rate))
    return {name: {str(status): n for status, n in sorted(counter.items())} for name, counter in ended.items()}


def memory_mib(server: Server) -> float:
    return round(server.process.memory_info().rss / (1 << 20), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "abuse.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        checkpoint = make_checkpoint(Path(folder) / MODEL, hidden=256, heads=4, vocab=VOCABULARY)
        with baton(checkpoint, STEP_S) as server:
            asyncio.run(attack(server, arguments.count // 20, arguments.rate))  # buffers and caches get their size
            quiet = times(good(server, GOOD_CHATS))
            memory = [memory_mib(server)]
            clients = good(server, max(GOOD_CHATS, int(arguments.count / arguments.rate * 20)))
            ended = asyncio.run(attack(server, arguments.count, arguments.rate))
            attacked = times(clients)
            memory.append(memory_mib(server))
    report = {
        "bad_requests": arguments.count,
        "rate_per_s": arguments.rate,
        "good_ms": {"alone": quiet, "attacked": attacked, "p99_ratio": round(attacked["p99"] / quiet["p99"], 2)},
        "memory_mib": {"before": memory[0], "after": memory[1]},
        "ended_by_status": ended,
    }
    print(json.dumps(report, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if any("500" in statuses for statuses in ended.values()):
        sys.exit("some bad requests were answered with 500")


if __name__ == "__main__":
    main()
