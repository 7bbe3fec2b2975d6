"""`baton bench engine`: prefill, decode and mixed speed of an engine in this process, its load time and memory."""

from __future__ import annotations

import argparse
import importlib
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baton.cli.bench.progress import bar
from baton.cli.bench.report import document, settings_of, write_json
from baton.cli.flags import Parser
from baton.cli.up.region import LiveRegion
from baton.core.errors import ConfigError
from baton.runtime import cores, environ, logs

SHARED_FROM_TOKENS = 512
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_QUANTIZATIONS = ("none", "int8", "int4", "fp8")
_DEVICES = ("auto", "cpu", "cuda")


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="baton bench engine",
        usage="baton bench engine --model PATH [flags]",
        description="Measure the engine alone, in this process. Each figure is the median of --repeats.",
        epilog=f"Rows of a batch with contexts of more than {SHARED_FROM_TOKENS} tokens share their prompt: "
        "it is computed once, and read by each row.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=100),
        add_help=False,
    )
    add = made.add_argument
    add("--model", required=True, metavar="PATH", help="checkpoint folder")
    add("--dtype", default="auto", choices=_DTYPES, metavar="NAME", help=f"{'|'.join(_DTYPES)} (%(default)s)")
    add(
        "--quantization",
        default="none",
        choices=_QUANTIZATIONS,
        metavar="NAME",
        help=f"{'|'.join(_QUANTIZATIONS)}: bits of the weights (%(default)s)",
    )
    add("--device", default="auto", choices=_DEVICES, metavar="NAME", help=f"{'|'.join(_DEVICES)} (%(default)s)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 = as a worker chooses (%(default)s)")
    add("--prefill", type=_counts, default="128,1024", metavar="TOKENS,..", help="prompt lengths (%(default)s)")
    add("--batch", type=_counts, default="1,8,32", metavar="N,..", help="decode: requests together (%(default)s)")
    add("--context", type=_counts, default="128,2048", metavar="TOKENS,..", help="decode: contexts (%(default)s)")
    add("--steps", type=int, default=16, metavar="N", help="decode: steps of one timing (%(default)s)")
    add(
        "--mixed",
        type=_mixed,
        default="32x256+64",
        metavar="NxI+O",
        help="N requests of I tokens in, O out (%(default)s)",
    )
    add("--chunk", type=int, default=512, metavar="TOKENS", help="longest piece of a prompt in a step (%(default)s)")
    add("--max-batch", type=int, default=2048, metavar="TOKENS", help="new tokens in one step (%(default)s)")
    add("--repeats", type=int, default=5, metavar="N", help="timings of each (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the prompts (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all timings")
    return made


def main(argv: list[str]) -> int:
    if any(argument in ("-h", "--help") for argument in argv):
        print(parser().format_help())
        return 0
    given = parser().parse_args(argv)
    for name, least in (("threads", 0), ("steps", 1), ("repeats", 1)):
        if getattr(given, name) < least:
            raise ConfigError(f"--{name} is {getattr(given, name)}; it must be at least {least}")
    environ.limit_threads(given.threads or cores.available().count)
    environ.quiet_libraries()
    logs.configure("bench", "warning", "console")
    print(f"loading {given.model}", file=sys.stderr, flush=True)
    bench = _load(given)
    try:
        rows = _measure(bench, given)
    finally:
        bench.close()
    found = {
        "load_s": bench.load_s,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": rows,
    }
    print(table(found))
    if given.json:
        settings = settings_of(given)
        write_json(given.json, document(found, command=["baton", "bench", "engine", *argv], settings=settings))
    return 0


def _load(given: argparse.Namespace) -> Any:
    """The engine, by name: the command line itself knows neither torch nor the engine."""
    measuring = importlib.import_module("baton.worker.bench")
    settings = importlib.import_module("baton.worker.settings")
    requests, input_tokens, output_tokens = given.mixed
    tokens = max(
        *given.prefill,
        requests * (input_tokens + output_tokens),
        *(
            batch * ((given.repeats + 1) * given.steps + context + measuring.spare_tokens(batch, context))
            for batch in given.batch
            for context in given.context
        ),
    )
    return measuring.EngineBench(
        settings.WorkerSettings(
            model=given.model,
            dtype=given.dtype,
            quantization=given.quantization,
            device=given.device,
            threads=given.threads,
            chunk_tokens=given.chunk,
            max_batch_tokens=given.max_batch,
            max_running=max(64, requests, *given.batch),
        ),
        given.seed,
        tokens,
    )


def _measure(bench: Any, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per case: its name and all timings, in tokens per second. The first run of a case is not counted."""
    total = len(given.prefill) + len(given.batch) * len(given.context) + 1
    region = LiveRegion(sys.stderr) if sys.stderr.isatty() else None
    rows: list[dict[str, Any]] = []

    def row(name: str, timing: Callable[[], float], **facts: Any) -> None:
        if region is not None:
            region.draw([f"{bar(len(rows), total)} {name}"])
        timing()
        rows.append({"case": name, "tokens_per_s": [timing() for _ in range(given.repeats)], **facts})

    try:
        for tokens in given.prefill:
            row(f"prefill {tokens}", lambda tokens=tokens: bench.prefill(tokens).tokens_per_s)  # type: ignore[misc]
        for context in given.context:
            for batch in given.batch:
                shared = context > SHARED_FROM_TOKENS and batch > 1
                steps = (given.repeats + 1) * given.steps
                bench.open_decode(batch, context, tokens=steps, shared=shared)
                row(f"decode {batch} at {context}", lambda: bench.decode(given.steps).tokens_per_s, shared=shared)
                bench.close_decode()
        requests, input_tokens, output_tokens = given.mixed
        mixed = f"mixed {requests} x ({input_tokens} in + {output_tokens} out)"
        row(mixed, lambda: bench.mixed(requests, input_tokens, output_tokens).output.tokens_per_s)
    finally:
        if region is not None:
            region.draw([])
    return rows


def table(found: dict[str, Any]) -> str:
    lines = [f"{'':<28}{'tok/s':>10}{'least':>10}{'most':>10}"]
    for row in found["rows"]:
        values = row["tokens_per_s"]
        name = row["case"] + (" (shared)" if row.get("shared") else "")
        lines.append(f"{name:<28}{statistics.median(values):>10.1f}{min(values):>10.1f}{max(values):>10.1f}")
    memory = found["peak_memory_bytes"] / 2**20
    return "\n".join([*lines, "", f"loaded in {found['load_s']:.2f} s, {memory:.0f} MiB at most"])


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positive numbers like 1,8,32")
    return counts


def _mixed(text: str) -> tuple[int, int, int]:
    """`32x256+64`: requests, tokens in, tokens out."""
    try:
        requests, rest = text.split("x")
        found = (int(requests), *map(int, rest.split("+")))
    except ValueError:
        found = ()
    if len(found) != 3 or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 32x256+64")
    return found
