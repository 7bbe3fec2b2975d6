"""What weights of fewer bits cost in exactness and bring in memory and speed: quantized at load, and stored so.

    python benchmarks/engine/quantization.py --model FOLDER [--cases N] [--only TEXT ...] [--json FILE]

Exactness is against the same weights in float32 on plain torch, over texts that this exact model draws itself at
temperature 1 (from chat openings where there is a chat_template.jinja, else from random tokens): perplexity of what
it drew, the mean divergence KL(exact || quantized) in nats per token, the largest error of a logit, and how often the
likeliest token is the same. `greedy`: of what the exact model answers to the same openings at temperature 0, the share
of tokens before the first other one. `tasks`, of the bundled model alone: right answers to its own held-out cases.
Bytes are those of layers and head, as they are computed with, without the embedding. Speed is the engine's, relative to
that of the first variant, with which each takes turns: the best tenth of the timings of both, for whatever else the
machine does only ever slows.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from variants import Variant, variants

from baton.cli.bench.report import document, settings_of, write_json
from baton.core.layout import RESERVED_PAGES
from baton.engine import Engine, products
from baton.engine.batch import StepBatch
from baton.engine.cpu.library import kernels
from baton.engine.elements import TORCH_DTYPES
from baton.engine.model.config import load_config
from baton.engine.model.weights import load_weights, stored_dtype
from baton.engine.runner import TorchModelRunner
from baton.runtime import logs
from baton.worker.bench import EngineBench
from baton.worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
POOL_TOKENS = 16_384
POOL_BYTES = 64 << 20
SPEEDS = ("prefill 128", "decode 1 at 128", "decode 8 at 128", "decode 32 at 128")
OPENINGS = (
    "Hello!",
    "My name is John. What is my name?",
    "Repeat this: four red boxes and a lamp",
    "What is 17 + 25?",
    "Which of these is the largest: 41, 7, 230?",
    "What can you do?",
    "Spell the word garden.",
    "The key is 4821. Tell me the key.",
)
FIRST_TOKEN = 100  # below it vocabularies keep their special tokens


@dataclass(slots=True)
class Agreement:
    """Sums over tokens."""

    tokens: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    same: int = 0
    max_error: float = 0.0

    def add(self, exact_TV: torch.Tensor, ours_TV: torch.Tensor, drawn_T: torch.Tensor) -> None:
        exact, ours = exact_TV.double().log_softmax(-1), ours_TV.double().log_softmax(-1)
        self.tokens += len(drawn_T)
        self.loss -= ours.gather(1, drawn_T[:, None]).sum().item()
        self.divergence += (exact.exp() * (exact - ours)).sum().item()
        self.max_error = max(self.max_error, (exact_TV - ours_TV).abs().max().item())
        self.same += int((exact.argmax(-1) == ours.argmax(-1)).sum())

    def figures(self) -> dict[str, float]:
        return {
            "perplexity": float(torch.tensor(self.loss / self.tokens).exp()),
            "kl_nats": self.divergence / self.tokens,
            "max_error": self.max_error,
            "same_top_1": self.same / self.tokens,
        }


def texts(model: str, count: int, tokens: int) -> list[tuple[list[int], int]]:
    """(token ids, tokens of the prompt) of each text, drawn by the model in float32."""
    prompts = openings(model, count)
    with Engine(model, dtype="float32") as engine:
        sampling = [
            {"temperature": 1.0, "seed": seed, "max_new_tokens": tokens, "ignore_eos": True} for seed in range(count)
        ]
        results = engine.generate(prompts, sampling)
    return [(prompt + one["output_ids"], len(prompt)) for prompt, one in zip(prompts, results, strict=True)]


@torch.inference_mode()
def logits_of(model: str, written: list[tuple[list[int], int]], **options: Any) -> list[torch.Tensor]:
    """Of each text: logits of the positions whose next token the model drew."""
    runner = TorchModelRunner.load(model, device="cpu", **options)
    layout = runner.layout
    pages = max(layout.pages_for(len(ids)) for ids, _ in written)
    shape = (layout.layers, pages + RESERVED_PAGES, 2, layout.page_size, layout.kv_heads, layout.head_dim)
    runner.bind_pool(torch.zeros(shape, dtype=TORCH_DTYPES[layout.dtype]))
    found = []
    for ids, prompt in written:
        length = len(ids)
        batch = StepBatch(
            token_ids=torch.tensor(ids),
            positions=torch.arange(length),
            slots=torch.arange(length) + RESERVED_PAGES * layout.page_size,
            q_starts=torch.tensor([0, length], dtype=torch.int32),
            seq_lens=torch.tensor([length], dtype=torch.int32),
            page_table=torch.arange(RESERVED_PAGES, RESERVED_PAGES + pages, dtype=torch.int32)[None],
            logit_rows=torch.arange(prompt - 1, length - 1),
            q_lens_host=[length],
            seq_lens_host=[length],
        )
        found.append(runner.forward(batch))
    return found


def openings(model: str, count: int) -> list[list[int]]:
    """Prompts: of a chat where there is a template, else random tokens."""
    if Path(model, "chat_template.jinja").exists():
        from transformers import AutoTokenizer  # takes seconds

        tokenizer = AutoTokenizer.from_pretrained(model)
        messages = [[{"role": "user", "content": OPENINGS[number % len(OPENINGS)]}] for number in range(count)]
        return [list(tokenizer.apply_chat_template(each, add_generation_prompt=True)["input_ids"]) for each in messages]
    generator, vocab = random.Random(0), load_config(model).vocab_size
    return [[generator.randrange(FIRST_TOKEN, vocab) for _ in range(16)] for _ in range(count)]


def answers(model: str, prompts: Sequence[Sequence[int]], tokens: int, **options: Any) -> list[list[int]]:
    """What is likeliest."""
    with Engine(model, kv_memory_bytes=POOL_BYTES, **options) as engine:
        sampling = {"temperature": 0.0, "max_new_tokens": tokens}
        return [one["output_ids"] for one in engine.generate([list(prompt) for prompt in prompts], sampling)]


def same_before_the_first_other(exact: Sequence[Sequence[int]], ours: Sequence[Sequence[int]]) -> float:
    same = 0
    for theirs, mine in zip(exact, ours, strict=True):
        pairs = itertools.zip_longest(theirs, mine)
        same += min(len(theirs), next((at for at, (a, b) in enumerate(pairs) if a != b), len(theirs)))
    return same / sum(map(len, exact))


def exactness(model: str, found: Sequence[Variant], count: int, tokens: int) -> dict[str, dict[str, float]]:
    written = texts(model, count, tokens)
    prompts = openings(model, min(count, len(OPENINGS)))
    exact = logits_of(model, written, dtype="float32", backend="torch")
    said = answers(model, prompts, tokens, dtype="float32")
    figures = {}
    for variant in found:
        agreement = Agreement()
        mine = logits_of(str(variant.folder), written, quantization=variant.quantization)
        for (ids, prompt), exact_TV, ours_TV in zip(written, exact, mine, strict=True):
            agreement.add(exact_TV, ours_TV, torch.tensor(ids[prompt:]))
        ours = answers(str(variant.folder), prompts, tokens, quantization=variant.quantization)
        figures[variant.name] = {**agreement.figures(), "greedy": same_before_the_first_other(said, ours)}
    return figures


def tasks(model: str, found: Sequence[Variant], count: int) -> dict[str, dict[str, float]]:
    """Share of right answers to `count` cases of each of the bundled model's skills."""
    sys.path.insert(0, str(ROOT))
    from tools.bundled_model.cases import by_skill
    from tools.bundled_model.conversation import parse_reply
    from tools.bundled_model.encoding import ChatEncoder

    encoder = ChatEncoder.load(Path(model))
    cases = [(skill, case) for skill, several in by_skill(1_000_001, count).items() for case in several]
    prompts = [encoder.prompt(case.messages, case.tools) for _, case in cases]
    figures: dict[str, dict[str, float]] = {}
    for variant in found:
        with Engine(str(variant.folder), quantization=variant.quantization, kv_memory_bytes=POOL_BYTES) as engine:
            sampling = {"temperature": 0.0, "max_new_tokens": 700, "stop_token_ids": (encoder.end_id,)}
            results = engine.generate([list(prompt) for prompt in prompts], sampling)
        right: dict[str, list[bool]] = {}
        for (skill, case), result in zip(cases, results, strict=True):
            ids = [token for token in result["output_ids"] if token != encoder.end_id]
            right.setdefault(skill, []).append(case.check.accepts(parse_reply(encoder.decode(ids))))
        shares = {skill: sum(each) / len(each) for skill, each in right.items()}
        figures[variant.name] = {"all": sum(shares.values()) / len(shares), **shares}
    return figures


def kept_bytes(variant: Variant) -> int:
    """Bytes of all matrices as they are computed with."""
    dtype = stored_dtype(variant.folder)
    own = kernels()
    by = products.on_cpu(own, variant.quantization, "float32" if dtype == "float16" else dtype, False)
    config = load_config(variant.folder)
    weights = load_weights(variant.folder, config, getattr(torch, dtype), "cpu", None, by)
    if config.tied_embeddings and weights.head is None:
        return 0
    return _bytes_of([(layer.heads, layer.output, layer.mlp) for layer in weights.layers]) + _bytes_of(weights.head)


def _bytes_of(part: Any) -> int:
    if isinstance(part, torch.Tensor):
        return part.numel() * part.dtype.itemsize
    if dataclasses.is_dataclass(part):
        return sum(_bytes_of(getattr(part, field.name)) for field in dataclasses.fields(part))
    if isinstance(part, list | tuple):
        return sum(map(_bytes_of, part))
    return sum(_bytes_of(each) for each in vars(part).values()) if callable(part) else 0


def speeds(found: Sequence[Variant], threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """Tokens per second by workload of each variant, over those of the first one, with which it takes turns."""
    return {variant.name: _relative(variant, found[0], threads, repeats) for variant in found[1:]}


def _relative(variant: Variant, to: Variant, threads: int, repeats: int) -> dict[str, float]:
    benches = (_bench(variant, threads), _bench(to, threads))
    ratios: dict[str, float] = {}

    def measure(what: str, timed: Callable[[EngineBench], float]) -> None:
        rates: list[list[float]] = [[], []]
        for _ in range(repeats):
            for bench, each in zip(benches, rates, strict=True):
                each.append(timed(bench))
        ours, theirs = (sorted(each, reverse=True)[repeats // 10] for each in rates)
        ratios[what] = ours / theirs

    measure("prefill 128", lambda bench: bench.prefill(128).tokens_per_s)
    for batch in (1, 8, 32):
        for bench in benches:
            bench.open_decode(batch, 128, tokens=repeats + 4)
            bench.decode(4)
        measure(f"decode {batch} at 128", lambda bench: bench.decode(1).tokens_per_s)
    for bench in benches:
        bench.close_decode()
        bench.close()
    return ratios


def _bench(variant: Variant, threads: int) -> EngineBench:
    settings = WorkerSettings(model=str(variant.folder), quantization=variant.quantization, threads=threads)
    return EngineBench(settings, pool_tokens=POOL_TOKENS)


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row for each variant; speeds relative to the first."""
    names = list(found["exactness"])
    lines = [
        "| weights | file, MB | memory, MB | perplexity | KL, nats | logit error | same top 1 | greedy | tasks | "
        + " | ".join(SPEEDS) + " |",
        "| --- " + "| ---: " * (8 + len(SPEEDS)) + "|",
    ]  # fmt: skip
    for name in names:
        exact, sizes = found["exactness"][name], found["bytes"][name]
        right = found["tasks"].get(name)
        speed = found["relative_speed"].get(name, {})
        cells = [
            f"{sizes['file'] / 1e6:.1f}", f"{sizes['memory'] / 1e6:.1f}", f"{exact['perplexity']:.4g}",
            f"{exact['kl_nats']:.2g}", f"{exact['max_error']:.2g}", f"{exact['same_top_1']:.1%}",
            f"{exact['greedy']:.1%}", "" if right is None else f"{right['all']:.1%}",
            *(f"{speed[what]:.2f}" if what in speed else "" for what in SPEEDS),
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder, not quantized")
    add("--only", nargs="*", default=[], help="variants whose name has one of these in it (all)")
    add("--texts", type=int, default=16, help="how many the exact model draws (%(default)s)")
    add("--tokens", type=int, default=128, help="of each (%(default)s)")
    add("--cases", type=int, default=0, help="of each skill of the bundled model (%(default)s: no tasks)")
    add("--repeats", type=int, default=40, help="timings of each; 0: none (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    logs.configure("bench", "warning", "console")
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as work:
        chosen = variants(
            Path(given.model), Path(work), lambda name: not given.only or any(each in name for each in given.only)
        )
        found = {
            "bytes": {each.name: {"file": each.stored_bytes, "memory": kept_bytes(each)} for each in chosen},
            "exactness": exactness(given.model, chosen, given.texts, given.tokens),
            "tasks": tasks(given.model, chosen, given.cases) if given.cases else {},
            "relative_speed": speeds(chosen, given.threads, given.repeats) if given.repeats else {},
        }
    print(table(found))
    if given.json:
        write_json(given.json, document(found, command=sys.argv, settings=settings_of(given)))


if __name__ == "__main__":
    main()
