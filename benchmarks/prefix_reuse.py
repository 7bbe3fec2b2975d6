"""What the prefix cache saves in a running system when most requests share a system prompt.

python benchmarks/prefix_reuse.py [--model PATH] [--requests 50] [--share 0.8] [--prefix 500] [--json FILE]

Starts `baton up` (prefill and decode workers, handoff and all; or takes `--url`), and sends requests of a 500-token
system prompt and 200 tokens of their own, of which 80 % have the same system prompt, one after another. The others
have one of their own that is as long, so that hits and misses differ in nothing but the cache. Saved is what the
system did not compute: prompt tokens found in the cache over all prompt tokens; a second run without anything in
common shows the same work without reuse.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from baton.cli.bench import workload
from baton.cli.bench.client import OpenAIClient
from baton.cli.bench.load import Load
from baton.cli.bench.outcome import Outcome
from baton.cli.bench.report import document, settings_of, write_json
from baton.cli.bench.workload import Conversation, Lengths, Writer
from baton.core.errors import BatonError, Unavailable
from baton.testing.checkpoints import make_checkpoint

START_TIMEOUT_S = 180.0


@contextmanager
def system(given: argparse.Namespace) -> Iterator[str]:
    """URL of a system that serves: the one named, or one that lives as long as this context."""
    if given.url:
        yield given.url
        return
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "up.log").open("wb") as log:
        command = [sys.executable, "-m", "baton.cli.main", "up", "--port=0", f"--runtime-dir={folder}/run"]
        model = given.model or make_checkpoint(
            Path(folder) / "model", layers=6, hidden=256, heads=4, vocab=given.vocab, dtype="bfloat16"
        )
        command.append(f"--model={model}")
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ})
        try:
            yield _wait_ready(process, Path(folder))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def _wait_ready(process: subprocess.Popen[bytes], folder: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    status = folder / "run" / "status.json"
    while time.monotonic() < deadline and process.poll() is None:
        if status.exists():
            told = json.loads(status.read_text())
            if told["ready"]:
                return str(told["url"])
        time.sleep(0.2)
    raise Unavailable("baton up did not become ready:\n" + (folder / "up.log").read_text()[-2000:])


async def measure(client: OpenAIClient, conversations: list[Conversation]) -> tuple[list[Outcome], float]:
    """Answers, one request after another, and the seconds that all took."""
    load = Load(client, len(conversations))
    await load.closed(conversations, 1)
    failed = next((outcome for outcome in load.log.outcomes if outcome.error), None)
    if failed is not None:
        raise Unavailable(f"a request failed: {failed.error} {failed.detail}")
    return load.log.outcomes, load.log.ended_s - load.log.started_s


async def run(url: str, given: argparse.Namespace) -> dict[str, Any]:
    lengths = Lengths(given.input, given.output)
    client = OpenAIClient(url)
    try:
        await client.find_model()
        await measure(client, workload.random_prompts(2, lengths, Writer((given.seed, 1), given.vocab, text=False)))
        runs = {}
        for name, share, seed in (("alone", 0.0, 2), ("shared", given.share, 3)):
            writer = Writer((given.seed, seed), given.vocab, text=False)
            found = workload.shared_prefix(given.requests, lengths, writer, prefix_tokens=given.prefix, share=share)
            runs[name] = await measure(client, found)
    finally:
        await client.close()
    return summary(*runs["shared"], *runs["alone"], least_hit=given.prefix // 2)


def summary(
    shared: list[Outcome], shared_s: float, alone: list[Outcome], alone_s: float, *, least_hit: int
) -> dict[str, Any]:
    """A hit found at least `least_hit` tokens of its prompt in the cache."""
    hits = [outcome.ttft_s * 1e3 for outcome in shared if (outcome.cached_tokens or 0) >= least_hit]
    misses = [outcome.ttft_s * 1e3 for outcome in shared if (outcome.cached_tokens or 0) < least_hit]
    return {
        "requests": len(shared),
        "hits": len(hits),
        "compute_saved": _cached_share(shared),
        "compute_saved_without_reuse": _cached_share(alone),
        "ttft_hit_ms": statistics.median(hits) if hits else None,
        "ttft_miss_ms": statistics.median(misses) if misses else None,
        "ttft_all_ms": statistics.median(outcome.ttft_s * 1e3 for outcome in shared),
        "ttft_without_reuse_ms": statistics.median(outcome.ttft_s * 1e3 for outcome in alone),
        "seconds": shared_s,
        "seconds_without_reuse": alone_s,
    }


def _cached_share(outcomes: list[Outcome]) -> float:
    return sum(o.cached_tokens or 0 for o in outcomes) / sum(o.prompt_tokens for o in outcomes)


def table(found: dict[str, Any], given: argparse.Namespace) -> str:
    hit, miss = found["ttft_hit_ms"], found["ttft_miss_ms"]
    rows = [
        ("prompt tokens not computed", "compute_saved", "compute_saved_without_reuse", ".1%", ""),
        ("time of the whole run", "seconds", "seconds_without_reuse", ".2f", " s"),
        ("median TTFT, all", "ttft_all_ms", "ttft_without_reuse_ms", ".1f", " ms"),
    ]
    lines = [
        f"{found['requests']} requests of {given.prefix} + {given.input} tokens in, {given.output} out; "
        f"{given.share:.0%} share the first {given.prefix}",
        *(
            f"{title:<30} {found[key]:{form}}{unit} (without reuse: {found[other]:{form}}{unit})"
            for title, key, other, form, unit in rows
        ),
    ]
    if hit and miss:
        lines.append(
            f"median TTFT, hit and miss      {hit:.1f} ms ({found['hits']} requests) and {miss:.1f} ms: "
            f"{miss / hit:.2f} times"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--url", default="", help="a system that runs already (else one is started)")
    add(
        "--model",
        default="",
        help="checkpoint for the started system (a random one, which never answers nothing)",
    )
    add("--requests", type=int, default=50, help="of each run (%(default)s)")
    add("--share", type=float, default=0.8, help="share of requests with the common system prompt (%(default)s)")
    add("--prefix", type=int, default=500, help="tokens of the system prompt (%(default)s)")
    add("--input", type=int, default=200, help="tokens of each request's own (%(default)s)")
    add("--output", type=int, default=16, help="tokens of each answer (%(default)s)")
    add("--vocab", type=int, default=2048, help="token ids are below this (%(default)s)")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="write the figures")
    given = parser.parse_args()
    try:
        with system(given) as url:
            found = asyncio.run(run(url, given))
    except BatonError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    print(table(found, given))
    if given.json:
        settings = settings_of(given)
        write_json(given.json, document(found, command=sys.argv, settings=settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
