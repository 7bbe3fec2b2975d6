"""Models of which most layers keep a state: Baton beside transformers' own code, and beside a model that only attends.

    python benchmarks/engine/hybrids.py [--only bamba,...] [--threads N] [--repeats N] [--json FILE]

Models of about 100 M random weights in bfloat16, made on the spot from the families' config classes: the same weights
for Baton's engine and for transformers, which keeps its own cache and decodes its rows as one batch; and a Llama of the
same size, which hybrids ought to be no slower than, and faster over long contexts. All take turns. Figures are medians
of tokens per second, and ratios medians over the turns. The limit is what reading weights, states and K and V once (and
writing states) takes at the memory's measured rate, or the multiplications at that of a large product, the longer one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from roofline import Machine, measure
from transformers import AutoConfig, AutoModelForCausalLM

from baton.cli.bench.report import document, settings_of, write_json
from baton.core.layout import STATE, KvLayout
from baton.runtime import logs
from baton.worker.bench import EngineBench
from baton.worker.settings import WorkerSettings

PREFILLS = (128, 1024)
DECODES = ((1, 128), (8, 128), (32, 128), (4, 8192))  # rows, and tokens that each has before it
STEPS = 4  # of one timing
CHUNK = 1024  # transformers gets longer prompts in pieces, as Baton computes them
ATTENDING = "llama"
_SIZES = {
    "vocab_size": 32_000, "hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 4,
    "intermediate_size": 2048, "max_position_embeddings": 16_384, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """A model: its type in transformers, and what its config has beside _SIZES."""

    title: str
    model_type: str
    config: Mapping[str, Any]


SHAPES = {
    "llama": Shape("Llama (attends only)", "llama", {"num_hidden_layers": 12}),
    "lfm2": Shape(
        "LFM2 (short convolutions)",
        "lfm2",
        {
            "num_hidden_layers": 11, "layer_types": ["conv", "conv", "full_attention"] * 3 + ["conv", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "bamba": Shape(
        "Bamba, Granite 4 (Mamba2)",
        "bamba",
        {
            "num_hidden_layers": 9, "attn_layer_indices": [4], "mamba_n_heads": 24, "mamba_d_head": 64,
            "mamba_d_state": 128, "mamba_chunk_size": 256,
        },
    ),
    "qwen3.5": Shape(
        "Qwen3.5, Qwen3-Next (gated deltas)",
        "qwen3_5_text",
        {
            "num_hidden_layers": 8, "head_dim": 64, "linear_num_key_heads": 6, "linear_num_value_heads": 12,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        },
    ),
}  # fmt: skip


def make(shape: Shape, folder: Path) -> Path:
    """The checkpoint of a shape."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.model_type, **_SIZES, **shape.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


class Side(Protocol):
    """A model that is timed; calls give tokens per second."""

    def prefill(self, tokens: int) -> float: ...

    def open_decode(self, rows: int, context: int, steps: int) -> None: ...

    def decode(self) -> float: ...

    def close_decode(self) -> None: ...


class Baton:
    """A checkpoint by Baton's engine."""

    def __init__(self, path: Path, threads: int) -> None:
        tokens = max(rows * (context + 512) for rows, context in DECODES)
        self._bench = EngineBench(WorkerSettings(model=str(path), threads=threads), pool_tokens=tokens)
        self.layout = self._bench.layout

    def prefill(self, tokens: int) -> float:
        return self._bench.prefill(tokens).tokens_per_s

    def open_decode(self, rows: int, context: int, steps: int) -> None:
        self._bench.open_decode(rows, context, tokens=steps)

    def decode(self) -> float:
        return self._bench.decode(STEPS).tokens_per_s

    def close_decode(self) -> None:
        self._bench.close_decode()


@dataclass(slots=True)
class Theirs:
    """A checkpoint by transformers' own code, greedily; a long prompt is computed once, and its cache repeated."""

    model: Any
    vocab: int
    cache: Any = None
    last: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def prefill(self, tokens: int) -> float:
        started = time.perf_counter()
        self._extend(1, tokens)
        return tokens / (time.perf_counter() - started)

    @torch.inference_mode()
    def open_decode(self, rows: int, context: int, steps: int) -> None:
        long = context > CHUNK
        self._extend(1 if long else rows, context)
        if long:
            self.cache.reorder_cache(torch.zeros(rows, dtype=torch.int64))
            self.last = self.last.repeat(rows, 1)

    @torch.inference_mode()
    def decode(self) -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            logits = self.model(self.last, past_key_values=self.cache, use_cache=True).logits
            self.last = logits[:, -1].argmax(-1, keepdim=True)
        return STEPS * len(self.last) / (time.perf_counter() - started)

    def close_decode(self) -> None:
        self.cache = None

    @torch.inference_mode()
    def _extend(self, rows: int, tokens: int) -> None:
        prompt, self.cache = torch.randint(100, self.vocab, (rows, tokens)), None
        for piece in prompt.split(CHUNK, dim=1):
            output = self.model(piece, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.cache = output.past_key_values
        self.last = output.logits[:, -1].argmax(-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model's steps must read, write and multiply."""

    weights: int  # in matrices, the head's among them
    head: int
    state_bytes: int  # of a row, whole pages
    kv_token_bytes: int

    @classmethod
    def of(cls, model: torch.nn.Module, layout: KvLayout) -> Needs:
        states = sum(len(group.layers) * group.size for group in layout.groups if group.kind == STATE)
        attending = sum(len(group.layers) for group in layout.groups if group.kind != STATE) or layout.layers
        weights = sum(each.numel() for each in model.parameters())  # the embedding is the head
        head = model.get_input_embeddings().weight.numel()
        kv_bytes = attending * layout.page_bytes // layout.page_size
        return cls(weights, head, states * layout.page_bytes, kv_bytes)

    def prefill_limit(self, machine: Machine, tokens: int) -> float:
        """Tokens per second. The head is computed for the last one; attention is left out."""
        flops = 2 * ((self.weights - self.head) * tokens + self.head)
        return tokens / max(flops / machine.flops_per_s, 2 * self.weights / machine.read_bytes_per_s)

    def decode_limit(self, machine: Machine, rows: int, context: int) -> float:
        """Tokens per second. States are read and written."""
        moved = 2 * self.weights + rows * (2 * self.state_bytes + context * self.kv_token_bytes)
        return rows / max(moved / machine.read_bytes_per_s, rows * 2 * self.weights / machine.flops_per_s)


@dataclass(slots=True)
class Measured:
    """Tokens per second by side, turn after turn; and the limit of each model."""

    rates: dict[str, list[float]]
    limits: dict[str, float]

    def median(self, side: str) -> float:
        return statistics.median(self.rates[side])

    def ratio(self, side: str, other: str) -> float:
        pairs = zip(self.rates[side], self.rates[other], strict=True)
        return statistics.median(own / theirs for own, theirs in pairs)


def compare(names: list[str], threads: int, repeats: int, machine: Machine) -> dict[str, Measured]:
    """By workload."""
    sides: dict[str, Side] = {}
    needs: dict[str, Needs] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = make(SHAPES[name], Path(folder))
            own = Baton(path, threads)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        sides[name], needs[name] = own, Needs.of(model, own.layout)
        if name != ATTENDING:
            sides[theirs(name)] = Theirs(model, model.config.vocab_size)
    torch.set_num_threads(threads)
    found = {}
    for tokens in PREFILLS:
        rates = in_turns(sides, repeats, lambda side, tokens=tokens: side.prefill(tokens))
        limits = {name: need.prefill_limit(machine, tokens) for name, need in needs.items()}
        found[f"prefill {tokens}"] = Measured(rates, limits)
    for rows, context in DECODES:
        for side in sides.values():
            side.open_decode(rows, context, STEPS * (repeats + 1))
        rates = in_turns(sides, repeats, lambda side: side.decode())
        for side in sides.values():
            side.close_decode()
        limits = {name: need.decode_limit(machine, rows, context) for name, need in needs.items()}
        found[f"decode {rows} at {context}"] = Measured(rates, limits)
    return found


def in_turns(sides: Mapping[str, Side], repeats: int, timed: Callable[[Side], float]) -> dict[str, list[float]]:
    """What `timed` says of each side, turn after turn; one more comes first, to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            rate = timed(side)
            if turn:
                rates[name].append(rate)
    return rates


def theirs(name: str) -> str:
    """The side of the same weights by transformers."""
    return f"{name}, transformers"


def table(found: Mapping[str, Measured]) -> str:
    """Markdown, a row for each model and workload."""
    columns = "tokens/s", "transformers", "times as fast", "of the limit", "of Llama's"
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for what, measured in found.items():
        for name, limit in measured.limits.items():
            own = measured.median(name)
            cells = [f"{own:,.0f}", "", "", f"{own / limit:.0%}", ""]
            if name != ATTENDING:
                cells[1] = f"{measured.median(theirs(name)):,.0f}"
                cells[2] = f"{measured.ratio(name, theirs(name)):.1f}"
            if name != ATTENDING and ATTENDING in measured.limits:
                cells[4] = f"{measured.ratio(name, ATTENDING):.2f}"
            lines.append(f"| {SHAPES[name].title}, {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", default=",".join(SHAPES), help="of the models, with commas (%(default)s)")
    add("--repeats", type=int, default=5, help="timings of each (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - set(SHAPES):
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(SHAPES)}")
    logs.configure("bench", "warning", "console")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    machine = measure(given.threads)
    found = compare(names, given.threads, given.repeats, machine)
    print(table(found))
    if given.json:
        summary = {"machine": asdict(machine), "workloads": {what: asdict(each) for what, each in found.items()}}
        write_json(given.json, document(summary, command=sys.argv, settings=settings_of(given)))


if __name__ == "__main__":
    main()
