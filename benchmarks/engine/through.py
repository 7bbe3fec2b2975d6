"""What running a model through transformers costs: the same checkpoint by the native decoder and by its own code.

    python benchmarks/engine/through.py --model FOLDER [--repeats N] [--threads N] [--json FILE]

The engine's tokens per second, in turns: medians of single prompts and single decode steps, and the ratio of both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from baton.cli.bench.report import document, settings_of, write_json
from baton.runtime import logs
from baton.worker.bench import EngineBench, Timing
from baton.worker.settings import WorkerSettings

BACKENDS = ("native", "transformers")
PROMPTS = (128, 512)
ROWS, CONTEXT = (1, 8, 32), 128
POOL_TOKENS = 16_384
WARM_UP = 4


def measured(model: str, threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """Tokens per second by workload and backend."""
    benches = {
        name: EngineBench(WorkerSettings(model=model, model_backend=name, threads=threads), pool_tokens=POOL_TOKENS)
        for name in BACKENDS
    }

    def medians(timed: Callable[[EngineBench], Timing]) -> dict[str, float]:
        rates: dict[str, list[float]] = {name: [] for name in benches}
        for _ in range(repeats):
            for name, bench in benches.items():
                rates[name].append(timed(bench).tokens_per_s)
        return {name: statistics.median(each) for name, each in rates.items()}

    found = {}
    for tokens in PROMPTS:
        found[f"prefill {tokens}"] = medians(lambda bench, tokens=tokens: bench.prefill(tokens))
    for rows in ROWS:
        for bench in benches.values():
            bench.open_decode(rows, CONTEXT, tokens=repeats + WARM_UP)
            bench.decode(WARM_UP)
        found[f"decode {rows} at {CONTEXT}"] = medians(lambda bench: bench.decode(1))
    for bench in benches.values():
        bench.close_decode()
        bench.close()
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    lines = ["| tokens/s | native | through transformers | ratio |", "| --- | ---: | ---: | ---: |"]
    for what, by_backend in found.items():
        native, through = (by_backend[name] for name in BACKENDS)
        lines.append(f"| {what} | {native:.1f} | {through:.1f} | {through / native:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder of a native family")
    add("--repeats", type=int, default=20, help="timings of each (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    logs.configure("bench", "warning", "console")
    found = measured(given.model, given.threads, given.repeats)
    print(table(found))
    if given.json:
        write_json(given.json, document(found, command=sys.argv, settings=settings_of(given)))


if __name__ == "__main__":
    main()
