"""What the engine costs between the model's forwards: microseconds per step, and how well overlapping hides them.

    python benchmarks/engine/scheduler.py [--json FILE]            host work of a step by rows and context length
    python benchmarks/engine/scheduler.py --model FOLDER           time between two forwards, plain and overlapped

The first part runs a model that computes nothing, so that a step is scheduling, batching, sampling and committing.
The second decodes with a real checkpoint, in turns with both loops.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from baton.cli.bench.report import document, settings_of, write_json
from baton.core.attempt import Attempt
from baton.core.layout import KvLayout
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest
from baton.engine.batch import ModelRunner, StepBatch
from baton.engine.engine import EngineCore
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.engine.runner import TorchModelRunner

Row = dict[str, Any]

ROWS = (1, 32, 64, 256)
CONTEXTS = (128, 1024, 4096, 8192)
CONFIG = EngineConfig(max_running=256, max_batch_tokens=1 << 16, chunk_tokens=1 << 14)


class NoModel:
    """A runner that computes nothing: all logits are the same."""

    layout = KvLayout("none", "float32", layers=1, page_size=16, kv_heads=1, head_dim=1)
    vocab_size = 64
    max_context_tokens = 1 << 20
    eos_token_ids: frozenset[int] = frozenset()

    def bind_pool(self, pool: torch.Tensor) -> None:
        pass

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        return torch.zeros(len(batch.logit_rows), self.vocab_size)


class Timed:
    """A runner that notes when each forward begins and ends."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.layout, self.vocab_size = runner.layout, runner.vocab_size
        self.max_context_tokens, self.eos_token_ids = runner.max_context_tokens, frozenset[int]()
        self.spans: list[tuple[float, float]] = []

    def bind_pool(self, pool: torch.Tensor) -> None:
        self._runner.bind_pool(pool)

    def forward(self, batch: StepBatch, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        begin = time.perf_counter()
        logits = self._runner.forward(batch, on_layer)
        self.spans.append((begin, time.perf_counter()))
        return logits


def decoding(runner: ModelRunner, rows: int, context: int, steps: int, config: EngineConfig) -> EngineCore:
    """An engine whose `rows` requests have `context` tokens each and will decode `steps` more."""
    page_size = runner.layout.page_size
    pool = KvPool(runner.layout, rows * (-(-(context + steps) // page_size) + 1) + 8)
    engine = EngineCore(runner, pool, config)
    generator = torch.Generator().manual_seed(0)
    for row in range(rows):
        tokens = torch.randint(0, runner.vocab_size, (context,), generator=generator).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=steps, ignore_eos=True)
        engine.submit(EngineRequest(Attempt(f"{row}"), tokens, context, params, b"root"))
    decoded = 0
    while decoded < rows:  # until a step of nothing but these has ended
        decoded = engine.step().decode_rows
    return engine


def host_cost_us(rows: int, context: int, steps: int = 64) -> float:
    engine = decoding(NoModel(), rows, context, steps + 8, CONFIG)
    durations = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()
        durations.append(time.perf_counter() - started)
    engine.close()
    return _undisturbed(durations) * 1e6


def _undisturbed(seconds: list[float]) -> float:
    """The tenth percentile: whatever else the machine does only ever adds."""
    return sorted(seconds)[len(seconds) // 10]


def print_host_costs() -> list[Row]:
    print("host work of one decode step, microseconds")
    print(f"{'rows':>6}" + "".join(f"{f'{context} tokens':>14}" for context in CONTEXTS) + f"{'per row':>10}")
    found: list[Row] = []
    for rows in ROWS:
        costs = [host_cost_us(rows, context) for context in CONTEXTS]
        print(f"{rows:>6}" + "".join(f"{cost:>14.0f}" for cost in costs) + f"{costs[-1] / rows:>10.1f}")
        found += [{"rows": rows, "context": at, "us": cost} for at, cost in zip(CONTEXTS, costs, strict=True)]
    return found


def print_gaps(runner: TorchModelRunner, rows: int, context: int, steps: int, rounds: int) -> list[Row]:
    config = replace(CONFIG, max_running=rows)
    results: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for round_ in range(2 * rounds):
        overlap = bool(round_ % 2)
        timed = Timed(runner)
        engine = decoding(timed, rows, context, steps + 8, replace(config, overlap=overlap))
        timed.spans.clear()
        for _ in range(steps):
            engine.step()
        engine.close()
        neighbours = list(zip(timed.spans, timed.spans[1:], strict=False))
        gap_s = _undisturbed([after[0] - before[1] for before, after in neighbours])
        results[overlap].append((_undisturbed([after[0] - before[0] for before, after in neighbours]), gap_s))
    print(f"{rows} rows of {context} tokens, medians of {rounds} rounds, each the tenth percentile of {steps} steps")
    found: list[Row] = []
    for overlap, measured in results.items():
        step_s, gap_s = (statistics.median(column) for column in zip(*measured, strict=True))
        name = "overlapped" if overlap else "plain"
        share = 100 * gap_s / step_s
        print(f"  {name:<11} step {step_s * 1e3:7.2f} ms, between forwards {gap_s * 1e6:6.0f} us = {share:4.2f} %")
        found.append({"rows": rows, "context": context, "loop": name, "step_us": step_s * 1e6, "gap_us": gap_s * 1e6})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder: measure the time between forwards with it")
    parser.add_argument("--rows", default="1,8,32", help="requests that decode together (%(default)s)")
    parser.add_argument("--context", type=int, default=128, help="tokens of each prompt (128)")
    parser.add_argument("--steps", type=int, default=24, help="steps per round (24)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each loop (5)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.model:
        runner = TorchModelRunner.load(options.model, device="cpu")
        figures = [
            figure
            for rows in map(int, options.rows.split(","))
            for figure in print_gaps(runner, rows, options.context, options.steps, options.rounds)
        ]
    else:
        figures = print_host_costs()
    if options.json:
        settings = settings_of(options)
        write_json(options.json, document({"figures": figures}, command=sys.argv, settings=settings))


if __name__ == "__main__":
    main()
