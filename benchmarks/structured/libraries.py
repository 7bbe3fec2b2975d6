"""Which grammar library: coverage, compile time and mask time on JSON schemas with known instances.

    python benchmarks/structured/libraries.py SCHEMAS.jsonl TOKENIZER.json [--every 3] [--out result.json]

Lines of SCHEMAS.jsonl have `schema`, `valid` and `invalid` (instances), as the samples of JSONSchemaBench do (Geng et
al. 2025). A library that is not installed is left out (`pip install --no-deps xgrammar apache-tvm-ffi`). Each runs in a
process of its own on one thread, one schema at a time, and is ended and started anew when a schema takes too long.
Times: compile includes the first mask, since one library works before it and the other in it; a mask's time is taken at
every token of every valid instance, as an engine would at every step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from contestants import CONTESTANTS, Contestant, Refused
from tokenizers import Tokenizer

START_TIMEOUT_S = 120.0


@dataclass
class Seen:
    """What one library did with one schema."""

    outcome: str = "whole"  # whole, refused, too slow, or: rejects a valid instance, accepts an invalid one
    compile_s: float = 0.0
    mask_us: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    schema: Any
    valid: Sequence[Sequence[int]]  # token ids, the end-of-sequence one last
    invalid: Sequence[Sequence[int]]


def main() -> None:
    options = _options()
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    eos = tokenizer.token_to_id(options.eos)
    samples = list(_samples(options.schemas, options.every, tokenizer, eos))
    tokens = sum(len(ids) for sample in samples for ids in sample.valid)
    print(f"{len(samples)} schemas, {tokens} tokens of valid instances, vocabulary {tokenizer.get_vocab_size()}")
    results = {"schemas": len(samples), "tokens": tokens, "vocabulary": tokenizer.get_vocab_size(), "libraries": {}}
    for name in CONTESTANTS:
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed")
            continue
        seen = _run(name, options, eos, samples)
        results["libraries"][name] = summary = _summary(seen)
        print(name, json.dumps(summary, indent=2))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemas", type=Path)
    parser.add_argument("tokenizer", type=Path, help="tokenizer.json")
    parser.add_argument("--eos", default="<|endoftext|>", help="end-of-sequence token")
    parser.add_argument("--every", type=int, default=1, help="take every n-th schema")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="for one schema with all its instances")
    parser.add_argument("--out", type=Path, help="write the result here, as JSON")
    return parser.parse_args()


def _samples(path: Path, every: int, tokenizer: Tokenizer, eos: int) -> Iterator[Sample]:
    def encode(instance: Any) -> list[int]:
        return [*tokenizer.encode(json.dumps(instance, ensure_ascii=False), add_special_tokens=False).ids, eos]

    for line in path.read_text().splitlines()[::every]:
        row = json.loads(line)
        yield Sample(row["schema"], [encode(one) for one in row["valid"]], [encode(one) for one in row["invalid"]])


def _run(name: str, options: argparse.Namespace, eos: int, samples: Sequence[Sample]) -> list[Seen]:
    context = multiprocessing.get_context("spawn")
    seen: list[Seen] = []
    while len(seen) < len(samples):
        ours, theirs = context.Pipe()
        process = context.Process(target=_child, args=(theirs, name, options.tokenizer, eos), daemon=True)
        process.start()
        if not ours.poll(START_TIMEOUT_S):
            raise SystemExit(f"{name} did not start")
        ours.recv()
        for sample in samples[len(seen) :]:
            ours.send(sample)
            if not ours.poll(options.timeout_s):
                seen.append(Seen("too slow", options.timeout_s))
                break
            try:
                seen.append(ours.recv())
            except EOFError:
                seen.append(Seen("crashed"))
                break
        process.kill()
        process.join()
    return seen


def _child(pipe: Connection, name: str, tokenizer: Path, eos: int) -> None:
    contestant: Contestant = CONTESTANTS[name](tokenizer, eos)
    words = -(-Tokenizer.from_file(str(tokenizer)).get_vocab_size() // 32)
    mask = np.zeros(words + 64, dtype=np.int32)[:words]
    pipe.send("ready")
    while True:
        pipe.send(_measure(contestant, pipe.recv(), mask))


def _measure(contestant: Contestant, sample: Sample, mask: np.ndarray[Any, Any]) -> Seen:
    started = time.perf_counter()
    try:
        compiled = contestant.compile(sample.schema)
        contestant.walk(compiled).fill(mask)
    except (Refused, ValueError) as error:
        del error
        return Seen("refused", time.perf_counter() - started)
    seen = Seen(compile_s=time.perf_counter() - started)
    accepted = [_accepts(contestant, compiled, ids, mask, seen.mask_us) for ids in sample.valid]
    if not all(accepted):
        seen.outcome = "rejects a valid instance"
    elif any(_accepts(contestant, compiled, ids, mask, []) for ids in sample.invalid):
        seen.outcome = "accepts an invalid instance"
    return seen


def _accepts(
    contestant: Contestant, compiled: object, token_ids: Sequence[int], mask: np.ndarray[Any, Any], times: list[float]
) -> bool:
    walk = contestant.walk(compiled)
    for token_id in token_ids:
        started = time.perf_counter()
        walk.fill(mask)
        times.append((time.perf_counter() - started) * 1e6)
        if not (mask[token_id // 32] >> (token_id % 32)) & 1:
            return False
        if token_id != token_ids[-1] and not walk.consume(token_id):
            return False
    return True


def _summary(seen: Sequence[Seen]) -> dict[str, Any]:
    compiled = [one for one in seen if one.mask_us]
    compile_ms = sorted(one.compile_s * 1e3 for one in compiled)
    mask_us = sorted(time_us for one in compiled for time_us in one.mask_us)
    return {
        "outcomes": dict(Counter(one.outcome for one in seen)),
        "compile_ms": asdict(_Spread.of(compile_ms)),
        "mask_us": asdict(_Spread.of(mask_us)),
    }


@dataclass(frozen=True)
class _Spread:
    median: float
    mean: float
    p95: float
    p99: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Spread:
        """Of sorted values."""
        at = [values[min(len(values) - 1, int(len(values) * share))] for share in (0.95, 0.99)]
        return cls(*(round(v, 2) for v in (statistics.median(values), statistics.mean(values), *at, values[-1])))


if __name__ == "__main__":
    main()
