"""Train the bundled model or its draft on generated conversations: `python -m tools.bundled_model.train --help`.

Writes its state to the run folder every few minutes and goes on from there when started again. The same recipe, seed
and kind of machine give the same model up to numerical noise, interrupted or not.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.bundled_model import tokenizer as tokenizer_training
from tools.bundled_model.batches import Batch, batches, held_out_batch
from tools.bundled_model.encoding import ChatEncoder
from tools.bundled_model.recipes import RECIPES
from tools.bundled_model.training import StepResult, Trainer, merged

JOURNAL = "journal.jsonl"
_HELD_OUT = ((48, 256), (6, 1024))  # rows and lengths of the held-out batches watched during training


@dataclass(slots=True)
class Window:
    """What happened since the last line of the journal."""

    started: float = field(default_factory=time.monotonic)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    exact: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        self.losses.append(result.loss)
        self.tokens += result.tokens
        self.exact = merged(self.exact, result.exact)

    @property
    def loss(self) -> float:
        return sum(self.losses) / max(1, len(self.losses))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(1e-9, self.seconds)


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    console = Console(soft_wrap=True)
    encoder = prepare_tokenizer(options.run)
    recipe = RECIPES[options.recipe]
    if options.steps is not None:
        if options.steps < 1:
            parser.error(f"--steps is {options.steps}; it must be at least 1")
        recipe = replace(recipe, steps=options.steps)
    trainer = Trainer(recipe, options.seed, device, bf16=not options.fp32, compiled=options.compile)
    try:
        resumed = trainer.load(options.run)
    except ValueError as error:
        parser.error(str(error))
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    console.print(
        f"{options.recipe}: {size / 1e6:.2f} M parameters, {recipe.steps} steps of {recipe.tokens} tokens on {device}"
        + (f", going on from step {trainer.step}" if resumed else "")
    )
    if trainer.step < recipe.steps:
        _run(trainer, encoder, options, console)
    console.print(f"trained; export it with: python -m tools.bundled_model.export --run {options.run} --out FOLDER")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu", help="what to train (default: %(default)s)")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder for checkpoints and the journal; resumed if there"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's; the schedule stretches with it")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches ahead (default: 0)")
    parser.add_argument("--save-every", type=float, default=300.0, metavar="S", help="seconds between checkpoints")
    parser.add_argument("--watch-every", type=int, default=250, metavar="STEPS", help="steps between held-out checks")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast (CPUs without bf16 instructions)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss; pays on GPUs")
    return parser


def prepare_tokenizer(folder: Path) -> ChatEncoder:
    """The run's tokenizer, trained first if it is not there yet. It is the same for every run and recipe."""
    if not (folder / "tokenizer.json").is_file():
        tokenizer_training.save(tokenizer_training.train(seed=0), folder, context_tokens=4096)
    return ChatEncoder.load(folder)


def _run(trainer: Trainer, encoder: ChatEncoder, options: argparse.Namespace, console: Console) -> None:
    held_out = [held_out_batch(encoder, seed, *size) for seed, size in enumerate(_HELD_OUT)]
    window, saved, ticked = Window(), time.monotonic(), time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task("", total=trainer.recipe.steps, completed=trainer.step, speed="")
        for batch in batches(encoder, trainer.plan(), trainer.step, options.workers):
            window.add(trainer.train_step(batch))
            trainer.spent_s, ticked = trainer.spent_s + time.monotonic() - ticked, time.monotonic()
            speed = f"loss {window.loss:.3f}  {window.tokens_per_s:,.0f} tok/s"
            progress.update(task, completed=trainer.step, speed=speed)
            if trainer.step % options.watch_every == 0 or trainer.step == trainer.recipe.steps:
                _watch(trainer, held_out, window, options.run, console)
                window = Window()
            if time.monotonic() - saved > options.save_every:
                trainer.save(options.run)
                saved = time.monotonic()
    trainer.save(options.run)


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=2,
    )


def _watch(trainer: Trainer, held_out: list[Batch], window: Window, folder: Path, console: Console) -> None:
    """Print and write down how it goes: training loss, held-out loss, exact held-out messages by skill."""
    result = trainer.evaluate(held_out)
    shares = {skill: right / total for skill, (right, total) in result.exact.items()}
    line = {
        "step": trainer.step,
        "seconds": round(window.seconds, 1),
        "tokens": window.tokens,
        "loss": round(window.loss, 4),
        "held_out_loss": round(result.loss, 4),
        "held_out_exact": {skill: round(share, 3) for skill, share in shares.items()},
    }
    with (folder / JOURNAL).open("a") as journal:
        journal.write(json.dumps(line) + "\n")
    listed = "  ".join(f"{skill} {share:.0%}" for skill, share in shares.items())
    console.print(
        f"step {trainer.step}: loss {window.loss:.3f}, held out {result.loss:.3f}, {window.tokens_per_s:,.0f} tok/s\n"
        f"  exact on held-out words: {listed}"
    )


if __name__ == "__main__":
    main()
