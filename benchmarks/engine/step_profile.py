"""What a step of the engine costs, part by part, beside the least that this machine allows.

    python benchmarks/engine/step_profile.py --model FOLDER                        decode, 32 rows of 128 tokens
    python benchmarks/engine/step_profile.py --model FOLDER --batch 1 --context 2048
    python benchmarks/engine/step_profile.py --model FOLDER --prefill 128          the one step of a prompt

The engine is the one that a worker runs. Its parts are timed by wrapping them: a part's time is its own, without that
of parts that it calls. Of each call in a step the least time in all steps counts, for whatever else the machine does
only ever adds. Whole steps are timed with and without the wrapping, in turns, so that its cost shows; they are the
tenth percentile. `least` is the time to read weights or KV once, or to do the multiplications, whichever is longer.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from baton.runtime import cores, environ, logs

environ.limit_threads(cores.available().count)  # as workers do, before torch is loaded

import torch
from kernels import gemm_gflop_per_s, read_gb_per_s

from baton.cli.bench import machine as here
from baton.cli.bench.report import document, settings_of, write_json
from baton.core.layout import DTYPE_BYTES
from baton.engine.batching import BatchBuilder
from baton.engine.committing import Committer
from baton.engine.cpu import recorded
from baton.engine.cpu.attention import CpuAttention
from baton.engine.cpu.linear import PackedLinear
from baton.engine.cpu.panels import PanelLinear
from baton.engine.cpu.pointwise import CpuPointwise
from baton.engine.cpu.quantized import QuantizedLinear
from baton.engine.drawing import Draws, LaunchedDraws
from baton.engine.engine import EngineCore
from baton.engine.model import decoder
from baton.engine.model.config import load_config
from baton.engine.model.decoder_config import DecoderConfig
from baton.engine.scheduler import Scheduler
from baton.worker.bench import EngineBench
from baton.worker.settings import WorkerSettings

PARTS: tuple[tuple[Any, str, str], ...] = (
    (EngineCore, "step", "engine: the rest of a step"),
    (Scheduler, "plan", "engine: scheduling"),
    (BatchBuilder, "build", "engine: batch"),
    (Draws, "of", "engine: draws prepared"),
    (Committer, "commit", "engine: results committed"),
    (Draws, "launch", "sampling"),
    (LaunchedDraws, "read", "sampling: results read"),
    (decoder.Decoder, "forward", "model: the rest of a forward"),
    (decoder, "rotation", "model: angles of rotation"),
    (CpuPointwise, "norm", "norms"),
    (CpuPointwise, "add_norm", "norms"),
    (CpuPointwise, "rotate", "rotation"),
    (CpuPointwise, "gate", "gating"),
    (CpuAttention, "plan", "attention: planning"),
    (CpuAttention, "write", "attention: K and V written"),
    (CpuAttention, "run", "attention"),
)
LINEARS = (PackedLinear, PanelLinear, QuantizedLinear)


@dataclass(slots=True)
class Stopwatch:
    """Times functions that call each other; each second counts for the innermost one."""

    steps: list[dict[str, list[float]]] = field(default_factory=list)  # seconds of each call of each part
    _now: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _inner: list[float] = field(default_factory=list)

    def wrap(self, name: Callable[[Any, Any], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """`name(first argument, result)` says which part a call belongs to."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            result = function(*args, **kwargs)
            seconds = time.perf_counter() - started
            self._now[name(args[1] if len(args) > 1 else None, result)].append(seconds - self._inner.pop())
            if self._inner:
                self._inner[-1] += seconds
            else:
                self.steps.append(dict(self._now))
                self._now.clear()
            return result

        return timed

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(recorded, "MOST_ROWS", 0))  # its calls are not made from Python
            for owner, attribute, part in PARTS:
                whole = owner.__dict__[attribute]
                inner = whole.__func__ if isinstance(whole, classmethod) else whole
                timed: Any = self.wrap(lambda _x, _y, part=part: part, inner)  # type: ignore[misc]
                timed = classmethod(timed) if isinstance(whole, classmethod) else timed
                stack.enter_context(mock.patch.object(owner, attribute, timed))
            for linear in LINEARS:
                timed = self.wrap(_linear, linear.__call__)
                stack.enter_context(mock.patch.object(linear, "__call__", timed))
            yield


def _linear(x: torch.Tensor, y: torch.Tensor) -> str:
    return f"linear {x.shape[1]} -> {y.shape[1]}, {len(x)} row{'s' * (len(x) > 1)}"


@dataclass(frozen=True, slots=True)
class Workload:
    """A step of `batch` rows with `new` tokens each after `context` cached ones."""

    config: DecoderConfig
    weight_bytes: float  # of one weight
    kv_bytes: int  # of one element
    batch: int
    context: int
    new: int

    def least_s(self, part: str, calls: int, machine: dict[str, float]) -> float | None:
        """Of all calls of `part` in a step; None where nothing but Python and caches is in the way."""
        config = self.config
        if part.startswith("linear"):
            inputs, outs, rows = (int(number) for number in re.findall(r"\d+", part))
            read, flop = inputs * outs * self.weight_bytes, 2.0 * rows * inputs * outs
        elif part == "attention":
            read = float(self.batch) * (self.context + self.new) * 2 * config.kv_heads * config.head_dim * self.kv_bytes
            pairs = self.batch * self.new * (self.context + (self.new + 1) / 2)
            flop = 4 * pairs * config.heads * config.head_dim
        else:
            return None
        return float(calls * max(read / machine["read_gb_per_s"], flop / machine["gemm_gflop_per_s"]) / 1e9)


def timed_steps(bench: EngineBench, given: argparse.Namespace, watch: Stopwatch) -> tuple[float, float]:
    """Seconds of a step without and with the wrapping; the parts of the latter are in `watch`."""
    plain, wrapped = [], []
    if not given.prefill:
        bench.open_decode(given.batch, given.context, tokens=2 * given.steps + 8)
        bench.decode(8)
    for _ in range(given.steps):
        plain.append(_step(bench, given))
        with watch.running():
            wrapped.append(_step(bench, given))
    bench.close_decode()
    return _undisturbed(plain), _undisturbed(wrapped)


def _step(bench: EngineBench, given: argparse.Namespace) -> float:
    return (bench.prefill(given.prefill) if given.prefill else bench.decode(1)).seconds


def table(watch: Stopwatch, workload: Workload, machine: dict[str, float]) -> list[dict[str, Any]]:
    whole = [step for step in watch.steps if any(part.startswith("linear") for part in step)]
    rows = []
    for part in {part for step in whole for part in step}:
        calls = round(statistics.median(len(step.get(part, ())) for step in whole))
        if not calls:
            continue  # what a few steps only did
        alike = [step[part] for step in whole if len(step.get(part, ())) == calls]
        seconds = sum(min(each) for each in zip(*alike, strict=True))
        least = workload.least_s(part, calls, machine)
        least_us = None if least is None else least * 1e6
        rows.append({"part": part, "calls": calls, "us": seconds * 1e6, "least_us": least_us})
    return sorted(rows, key=lambda row: -row["us"])


def _undisturbed(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 10]


def show(rows: list[dict[str, Any]], plain_s: float, wrapped_s: float) -> None:
    total, least = (sum(row[key] or 0 for row in rows) for key in ("us", "least_us"))
    print("| part | calls | us | share | least, us | of the least |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        bound = f"{row['least_us']:.0f} | {row['least_us'] / row['us']:.0%}" if row["least_us"] else " | "
        print(f"| {row['part']} | {row['calls']} | {row['us']:.0f} | {row['us'] / total:.1%} | {bound} |")
    print(f"| **all parts** | | {total:.0f} | | {least:.0f} | {least / total:.0%} |")
    print(f"\na whole step: {plain_s * 1e6:.0f} us, with all parts timed and none recorded {wrapped_s * 1e6:.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder")
    add("--batch", type=int, default=32, help="rows that decode (%(default)s)")
    add("--context", type=int, default=128, help="tokens of each of their prompts (%(default)s)")
    add("--prefill", type=int, default=0, metavar="TOKENS", help="a prompt of so many tokens instead, at most 512")
    add("--steps", type=int, default=40, help="steps of each kind (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--quantization", default="none", help="none, int8, int4 (%(default)s)")
    add("--json", type=Path, help="also write the results to this file")
    given = parser.parse_args()
    logs.configure("bench", "warning", "console")
    config = load_config(given.model)
    tokens = max(given.prefill, given.batch * (given.context * 2 + 2 * given.steps + 64))
    bench = EngineBench(
        WorkerSettings(model=given.model, threads=given.threads, quantization=given.quantization, chunk_tokens=512),
        pool_tokens=tokens,
    )
    dtype = bench.layout.dtype
    with torch.inference_mode():
        machine = {
            "read_gb_per_s": read_gb_per_s(5), "gemm_gflop_per_s": gemm_gflop_per_s(getattr(torch, dtype), 5),
        }  # fmt: skip
    watch = Stopwatch()
    plain_s, wrapped_s = timed_steps(bench, given, watch)
    bench.close()
    kv_bytes = DTYPE_BYTES[dtype]
    weight_bytes = {"none": float(kv_bytes), "int8": 1.0, "int4": 0.5 + 4 / 32}[given.quantization]
    new, context, batch = (given.prefill, 0, 1) if given.prefill else (1, given.context, given.batch)
    rows = table(watch, Workload(config, weight_bytes, kv_bytes, batch, context, new), machine)
    hardware, commit = here.hardware(), here.commit()
    print(
        f"{hardware['cpu']}, {given.threads} of {hardware['cores']} cores, load {hardware['load_average']}, commit "
        f"{commit}: reads {machine['read_gb_per_s']:.1f} GB/s, multiplies {machine['gemm_gflop_per_s']:.0f} GFLOP/s "
        f"({dtype})\n"
    )
    show(rows, plain_s, wrapped_s)
    if given.json:
        found = {"machine": machine, "step_us": plain_s * 1e6, "wrapped_us": wrapped_s * 1e6, "parts": rows}
        settings = settings_of(given)
        write_json(given.json, document(found, command=sys.argv, settings=settings))


if __name__ == "__main__":
    main()
