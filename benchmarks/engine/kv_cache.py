"""What a KV cache of float8 costs in exactness, and what it brings: tokens per GB, and speed by length of context.

    python benchmarks/engine/kv_cache.py --model FOLDER [--exactness-of FOLDER] [--json FILE]

Exactness is that of benchmarks/engine/quantization.py: against float32, over texts that the float32 model draws. Scales
other than 1 are those of a checkpoint that names them: links to the given one's files, and a tensor more. Speed is the
engine's, in turns with the model's own cache: the medians of single steps, of which as many prefill as decode, and the
ratio of both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from quantization import Agreement, logits_of, texts
from safetensors.torch import save_file

from baton.cli.bench.report import document, settings_of, write_json
from baton.core.layout import FLOAT8, KV_DTYPES
from baton.engine.model.files import tensor_entries
from baton.runtime import logs
from baton.worker.bench import EngineBench
from baton.worker.settings import WorkerSettings

SCALES = tuple(2.0**power for power in (-8, -6, -4, -2, 0, 2, 4, 6))
CONTEXTS = (128, 1024, 4096)
ROWS = 8


def scaled(model: Path, scale: float, folder: Path) -> Path:
    """A checkpoint in `folder` that is `model`, and says that K is `scale` times what float8 holds."""
    for file in model.iterdir():
        if file.suffix != ".safetensors" or not (model / "model.safetensors").exists():
            (folder / file.name).symlink_to(file.absolute())
    names = tensor_entries(model)
    for file in {entry.file for entry in names.values()}:
        (folder / f"weights-{file.name}").symlink_to(file.absolute())
    save_file({"model.layers.0.self_attn.k_scale": torch.tensor(scale)}, folder / "scale.safetensors")
    placed = {name: f"weights-{entry.file.name}" for name, entry in names.items()}
    placed["model.layers.0.self_attn.k_scale"] = "scale.safetensors"
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def exactness(model: str, count: int, tokens: int) -> dict[str, dict[str, float]]:
    written = texts(model, count, tokens)
    exact = logits_of(model, written, dtype="float32", backend="torch")

    def compared(ours: list[torch.Tensor]) -> dict[str, float]:
        agreement = Agreement()
        for (ids, prompt), exact_TV, ours_TV in zip(written, exact, ours, strict=True):
            agreement.add(exact_TV, ours_TV, torch.tensor(ids[prompt:]))
        return agreement.figures()

    found = {"its own": compared(logits_of(model, written))}
    for scale in SCALES:
        with tempfile.TemporaryDirectory() as folder:
            there = scaled(Path(model), scale, Path(folder))
            found[f"float8, scale {scale:g}"] = compared(logits_of(str(there), written, kv_dtype=FLOAT8))
    return found


def speeds(model: str, threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """By workload: medians in milliseconds of both caches, and float8's over the other's, whose turn was beside it."""
    tokens = (ROWS + 1) * (max(CONTEXTS) + 64) + ROWS * (repeats + 80)
    benches = {
        kind: EngineBench(WorkerSettings(model=model, kv_cache_dtype=kind, threads=threads), pool_tokens=tokens)
        for kind in KV_DTYPES
    }
    found: dict[str, dict[str, float]] = {}

    def record(what: str, seconds: dict[str, list[float]]) -> None:
        own, narrow = (seconds[kind] for kind in KV_DTYPES)
        found[what] = {
            "own_ms": 1e3 * statistics.median(own),
            "float8_ms": 1e3 * statistics.median(narrow),
            "ratio": statistics.median(ours / theirs for ours, theirs in zip(narrow, own, strict=True)),
        }

    for context in CONTEXTS:
        seconds: dict[str, list[float]] = {kind: [] for kind in benches}
        for _ in range(max(3, repeats // 8)):
            for kind, bench in benches.items():
                seconds[kind].append(bench.prefill(context).seconds)
        record(f"prefill of {context}", seconds)
        seconds = {kind: [] for kind in benches}
        for bench in benches.values():
            bench.open_decode(ROWS, context, tokens=repeats + 4, shared=True)
            bench.decode(4)
        for _ in range(repeats):
            for kind, bench in benches.items():
                seconds[kind].append(bench.decode(1).seconds)
        record(f"decode {ROWS} at {context}", seconds)
    for bench in benches.values():
        bench.close_decode()
        bench.close()
    found["capacity"] = {
        kind: bench.layout.page_size * 1e9 / bench.layout.pool_bytes(1) for kind, bench in benches.items()
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder whose speed is measured")
    add("--exactness-of", help="checkpoint folder whose exactness is measured; without it, the same")
    add("--texts", type=int, default=16, help="how many the exact model draws (%(default)s)")
    add("--tokens", type=int, default=128, help="of each (%(default)s)")
    add("--repeats", type=int, default=40, help="timings of each (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    logs.configure("bench", "warning", "console")
    torch.set_num_threads(given.threads)
    agreement = exactness(given.exactness_of or given.model, given.texts, given.tokens)
    speed = speeds(given.model, given.threads, given.repeats)
    for name, figures in {**agreement, **speed}.items():
        print(f"{name:24}" + "".join(f"{what:>14} {value:<10.4g}" for what, value in figures.items()))
    if given.json:
        found = {"exactness": agreement, "speed": speed}
        write_json(given.json, document(found, command=sys.argv, settings=settings_of(given)))


if __name__ == "__main__":
    main()
