"""`baton bench serve`: load on a running system, and what its clients see of it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import uvloop

from baton.cli.bench import plot, progress, trace, workload
from baton.cli.bench.client import OpenAIClient
from baton.cli.bench.load import Load, poisson_times
from baton.cli.bench.report import document, settings_of, table, write_json
from baton.cli.bench.summary import Slo, summarize
from baton.cli.bench.workload import Conversation, Lengths, Writer
from baton.cli.flags import Parser
from baton.core.errors import ConfigError
from baton.runtime.lifecycle import cancel_and_wait

WORKLOADS = ("random", "shared-prefix", "multi-turn", "trace")
_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="baton bench serve",
        usage="baton bench serve [flags]",
        description="Load a running system over the OpenAI API, and measure. Ctrl-C reports what there is so far.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=100),
        add_help=False,
    )
    add = made.add_argument
    add("--url", default="http://127.0.0.1:8000", metavar="URL", help="server (%(default)s)")
    add("--model", default="", metavar="NAME", help="model (the first that the server names)")
    add("--api-key", default="", metavar="KEY", help="sent as bearer token")
    add("--chat", action="store_true", help="chat completions, with text, instead of completions of token ids")
    add("--workload", default="random", choices=WORKLOADS, metavar="NAME", help=f"{'|'.join(WORKLOADS)} (%(default)s)")
    add("--requests", type=int, metavar="N", help="how many (100; of a trace: all)")
    add("--concurrency", type=int, metavar="N", help="so many at once (8, unless --rate); with --rate: at most")
    add("--rate", type=float, metavar="X", help="requests per second, at random times (Poisson)")
    add("--input", type=int, default=512, metavar="TOKENS", help="mean prompt, without the prefix (%(default)s)")
    add("--output", type=int, default=64, metavar="TOKENS", help="mean answer (%(default)s)")
    add("--spread", type=float, default=0.0, metavar="X", help="lengths vary evenly by this share (%(default)s)")
    add("--prefix", type=int, default=500, metavar="TOKENS", help="shared-prefix, multi-turn: system prompt (500)")
    add("--share", type=float, default=0.8, metavar="X", help="shared-prefix: share of requests that have it (0.8)")
    add("--turns", type=int, default=4, metavar="N", help="multi-turn: requests of a conversation (%(default)s)")
    add("--trace", type=Path, metavar="FILE", help="trace: requests in Mooncake's format, JSON lines")
    add("--block", type=int, default=512, metavar="TOKENS", help="trace: tokens per hash id; fewer shrink all (512)")
    add("--speed", type=float, default=1.0, metavar="X", help="trace: run its clock so many times faster (1)")
    add("--vocab", type=int, default=2048, metavar="N", help="token ids are from 100 to this, exclusive (%(default)s)")
    add("--natural-end", action="store_true", help="let answers end early; else ignore_eos is sent")
    add("--warmup", type=int, default=1, metavar="N", help="requests before, not counted (%(default)s)")
    add("--slo-ttft-ms", type=float, metavar="MS", help="goodput: longest time to the first token")
    add("--slo-itl-ms", type=float, metavar="MS", help="goodput: longest mean time between tokens")
    add("--seed", type=int, default=0, metavar="N", help="equal seeds, equal prompts and times (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--plot", type=Path, metavar="FILE", help="write a picture (.png; needs matplotlib)")
    return made


def main(argv: list[str]) -> int:
    if any(argument in ("-h", "--help") for argument in argv):
        print(parser().format_help())
        return 0
    given = parser().parse_args(argv)
    _check(given)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(given, ["baton", "bench", "serve", *_without_key(argv)]))


async def _run(given: argparse.Namespace, command: list[str]) -> int:
    client = OpenAIClient(
        given.url, model=given.model, api_key=given.api_key, chat=given.chat, ignore_eos=not given.natural_end
    )
    try:
        await client.find_model()
        conversations, due_s, planned = plan(given)
        await _warm_up(client, given)
        load = Load(client, planned)
        interrupted = await _until_done_or_interrupted(load, given, conversations, due_s)
    finally:
        await client.close()
    return _tell(given, load, command, client.model, interrupted)


def plan(given: argparse.Namespace) -> tuple[Iterable[Conversation], list[float] | None, int]:
    """What to send, when (None: as fast as the concurrency allows), and how many requests that makes."""
    lengths = Lengths(given.input, given.output, given.spread)
    lengths.check()
    as_text = given.chat or given.workload == "multi-turn"
    if given.workload == "trace":
        lines = trace.read_trace(given.trace, given.requests)
        made = trace.conversations(
            lines, given.seed, given.vocab, block_tokens=given.block, speed=given.speed, text=as_text
        )
        start_ms = lines[0].timestamp_ms
        due_s = [(line.timestamp_ms - start_ms) / 1e3 / given.speed for line in lines]
        return made, None if given.concurrency and not given.rate else due_s, len(lines)
    writer = Writer(given.seed, given.vocab, text=as_text)
    count = given.requests or 100
    if given.workload == "shared-prefix":
        found = workload.shared_prefix(count, lengths, writer, prefix_tokens=given.prefix, share=given.share)
    elif given.workload == "multi-turn":
        found = workload.multi_turn(count, given.turns, lengths, writer, prefix_tokens=given.prefix)
    else:
        found = workload.random_prompts(count, lengths, writer)
    due = poisson_times(len(found), given.rate, given.seed) if given.rate else None
    return found, due, workload.requests_of(found)


async def _warm_up(client: OpenAIClient, given: argparse.Namespace) -> None:
    """A few requests one after another, of prompts that the run does not use. Raises ConfigError if the first fails."""
    writer = Writer((given.seed, 2), given.vocab, text=given.chat or given.workload == "multi-turn")
    lengths = Lengths(given.input, given.output)
    load = Load(client, given.warmup)
    await load.closed(workload.random_prompts(given.warmup, lengths, writer), 1)
    for outcome in load.log.outcomes:
        if outcome.error:
            raise ConfigError(f"the first request to {client.url} failed: {outcome.error}: {outcome.detail}")


async def _until_done_or_interrupted(
    load: Load, given: argparse.Namespace, conversations: Iterable[Conversation], due_s: list[float] | None
) -> bool:
    """Run the load; True when Ctrl-C (or SIGTERM) ended it."""
    if due_s is None:
        running = asyncio.ensure_future(load.closed(conversations, given.concurrency or 8))
    else:
        running = asyncio.ensure_future(load.open(conversations, due_s, given.concurrency))
    showing = asyncio.ensure_future(progress.show(load.log))
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        return True
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        await cancel_and_wait(showing)
    return False


def _tell(given: argparse.Namespace, load: Load, command: list[str], model: str, interrupted: bool) -> int:
    summary = summarize(load.log, Slo(given.slo_ttft_ms, given.slo_itl_ms))
    if interrupted:
        print("interrupted; so far:", file=sys.stderr)
    print(table(summary))
    if given.json:
        settings = settings_of(given)
        del settings["api_key"]
        settings |= {"model": model, "interrupted": interrupted}
        write_json(given.json, document(summary, command=command, settings=settings, log=load.log))
    if given.plot:
        plot.write_plot(given.plot, load.log, f"{model}: {given.workload}, {load.log.planned} requests")
    if interrupted:
        return _INTERRUPTED
    return 0 if load.log.answered else 1


def _check(given: argparse.Namespace) -> None:
    for name in ("requests", "concurrency", "rate", "slo_ttft_ms", "slo_itl_ms"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be more than 0")
    if given.warmup < 0:
        raise ConfigError(f"--warmup is {given.warmup}; it must not be negative")
    if (given.workload == "trace") != (given.trace is not None):
        raise ConfigError("--workload trace and --trace FILE go together")
    if given.rate and given.workload == "trace":
        raise ConfigError("a trace has its own times: use --speed instead of --rate")
    if given.plot:
        plot.check_available()


def _without_key(argv: list[str]) -> list[str]:
    """The command line as it may be written into a file."""
    hidden = ["***" if before == "--api-key" else argument for before, argument in pairwise(["", *argv])]
    return ["--api-key=***" if argument.startswith("--api-key=") else argument for argument in hidden]
