"""Weights of fewer bits beside llama.cpp: both engines on the same GGUF files, in turns.

    python benchmarks/engine/beside_llama_cpp.py [--model llama-100m] [--kinds BF16 Q8_0 ...] [--json FILE]

llama.cpp rounds activations to 8 bits, in groups of 32, wherever weights have 8 bits or fewer, and multiplies whole
numbers; Baton rounds them to bfloat16 only. Rates are medians of turns; `of bf16` is an engine's rate over its own rate
with the first kind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import models
import roofline
from cases import Case
from link import Link
from peers import BY_NAME, DEFAULT_FOLDER, set_up

from baton.cli.bench.report import document, settings_of, write_json
from baton.models.gguf.folder import checkpoint_folder
from baton.testing import gguf_files
from baton.testing.gguf_files import Kind, Kinds

KINDS: Mapping[str, Kinds] = {
    **{kind.name: (lambda name, columns, kind=kind: kind) for kind in (Kind.BF16, Kind.Q8_0, Kind.Q4_0)},
    "Q4_K_M": gguf_files.q4_k_m,
}
ENGINES = ("baton", "llama-cpp")
STEPS = 16  # of one timing
CONTEXT = 128
SOURCES = Path(__file__).resolve().parents[2]

Rates = dict[str, dict[str, dict[str, float]]]  # tokens per second by kind, case and engine


def cases(repeats: int) -> list[Case]:
    opening = {"do": "open_decode", "context": CONTEXT, "shared": False, "tokens": STEPS * (repeats + 1)}
    step = {"do": "decode", "steps": STEPS}
    decode = [Case(f"decode {rows} at {CONTEXT}", step, {**opening, "batch": rows}) for rows in (1, 8, 32)]
    return [*decode, Case(f"prefill {CONTEXT}", {"do": "prefill", "tokens": CONTEXT})]


def gguf_file(model: models.Model, kind: str, folder: Path) -> Path:
    """Made on first use, whole or not at all."""
    checkpoint = models.make(model, folder / "models")
    file = folder / "gguf" / f"{model.name}-{kind}.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        gguf_files.write(checkpoint, draft, KINDS[kind], blocks=gguf_files.nearest_blocks)
        draft.rename(file)
    return file


def start(engine: str, model: models.Model, file: Path, folder: Path, threads: int, repeats: int) -> Link:
    peer = BY_NAME[engine]
    set_up(peer, folder)
    path = checkpoint_folder(file, folder / "gguf" / "cache") if engine == "baton" else file
    tokens = CONTEXT + STEPS * (repeats + 2)
    options: dict[str, Any] = {
        "model": str(path), "threads": threads, "cores": sorted(os.sched_getaffinity(0))[:threads], "seed": 0,
        "context": tokens, "pool_tokens": 40 * tokens, "kv_token_bytes": model.kv_token_bytes,
    }  # fmt: skip
    sources = os.pathsep.join(str(SOURCES / name) for name in ("libs", "services"))
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": sources if peer.install is None else ""}
    return Link(peer.python(folder), peer.script(), options, environment)


def measure(links: Mapping[str, Link], repeats: int) -> dict[str, dict[str, float]]:
    """Tokens per second by case and engine, the median of turns; the first ones only warm up."""
    found = {}
    for case in cases(repeats):
        rates: dict[str, list[float]] = {engine: [] for engine in links}
        with contextlib.ExitStack() as stack:
            for link in links.values():
                stack.enter_context(case.opened(link))
                case.timed(link)
            for turn in range(repeats):
                for engine in sorted(links, reverse=turn % 2 == 1):
                    rates[engine].append(case.timed(links[engine])[0])
        found[case.name] = {engine: statistics.median(each) for engine, each in rates.items()}
    return found


def table(rates: Rates) -> str:
    """A row for each kind and case."""
    plain = next(iter(rates.values()))
    lines = ["| weights | | Baton | llama.cpp | Baton / llama.cpp | Baton, of bf16 | llama.cpp, of bf16 |",
             "| --- | --- " + "| ---: " * 5 + "|"]  # fmt: skip
    for kind, by_case in rates.items():
        for case, each in by_case.items():
            own, other = (each[engine] for engine in ENGINES)
            of = [each[engine] / plain[case][engine] for engine in ENGINES]
            ratios = " | ".join(f"{ratio:.2f}" for ratio in (own / other, *of))
            lines.append(f"| {kind} | {case} | {own:.0f} | {other:.0f} | {ratios} |")
    return "\n".join(lines)


def run(given: argparse.Namespace, kinds: Sequence[str]) -> Rates:
    model, rates = models.BY_NAME[given.model], {}
    for kind in kinds:
        file = gguf_file(model, kind, given.folder)
        with contextlib.ExitStack() as stack:
            links = {}
            for engine in ENGINES:
                links[engine] = start(engine, model, file, given.folder, given.threads, given.repeats)
                stack.callback(links[engine].close)
            rates[kind] = measure(links, given.repeats)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="llama-100m", choices=models.BY_NAME, help="which (%(default)s)")
    add("--kinds", nargs="*", default=list(KINDS), choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)} (all)")
    add("--threads", type=int, default=1, help="CPU threads of each engine (%(default)s)")
    add("--repeats", type=int, default=9, help="timings of each (%(default)s)")
    add("--folder", type=Path, default=DEFAULT_FOLDER, help="environments, checkpoints and files (%(default)s)")
    add("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    machine = roofline.measure(given.threads, quick=True)
    rates = run(given, given.kinds)
    print(f"{given.threads} threads; memory gives {machine.read_bytes_per_s / 1e9:.1f} GB/s. Tokens per second:\n")
    print(table(rates))
    if given.json:
        found = {"tokens_per_s": rates, "read_bytes_per_s": machine.read_bytes_per_s}
        settings = {name: value for name, value in settings_of(given).items() if name != "folder"}
        write_json(given.json, document(found, command=sys.argv, settings=settings))


if __name__ == "__main__":
    main()
