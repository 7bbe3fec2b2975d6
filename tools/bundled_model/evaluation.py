"""Accuracy of a checkpoint folder per skill, on held-out words, names and seeds.

`python -m tools.bundled_model.evaluation --model FOLDER`.

Answers are generated greedily and judged by each case's own check, so another right wording counts as right.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tools.bundled_model.cases import Case, by_skill
from tools.bundled_model.checkpoint import load_model
from tools.bundled_model.conversation import parse_reply
from tools.bundled_model.encoding import ChatEncoder
from tools.bundled_model.generation import greedy
from tools.bundled_model.model import Llama

_ROWS = 50  # prompts generated at a time
_MAX_NEW_TOKENS = 700


@dataclass(frozen=True, slots=True)
class Mistake:
    skill: str
    asked: str
    answered: str


@dataclass(frozen=True, slots=True)
class Score:
    """`right` of `total` cases; `tokens` is the mean length of their prompts."""

    right: int
    total: int
    tokens: float

    @property
    def share(self) -> float:
        return self.right / self.total


def evaluate(
    model: Llama, encoder: ChatEncoder, cases: Mapping[str, Sequence[Case]], *, silent: bool = True
) -> tuple[dict[str, Score], list[Mistake]]:
    """Score of each skill, and what went wrong."""
    scores: dict[str, Score] = {}
    mistakes: list[Mistake] = []
    for skill in track(cases, "evaluating", disable=silent, transient=True):
        prompts = [encoder.prompt(case.messages, case.tools) for case in cases[skill]]
        answers = _answers(model, encoder, prompts)
        wrong = [
            Mistake(skill, case.messages[-1].content, answer)
            for case, answer in zip(cases[skill], answers, strict=True)
            if not case.check.accepts(parse_reply(answer))
        ]
        mistakes += wrong
        mean = sum(map(len, prompts)) / len(prompts)
        scores[skill] = Score(len(prompts) - len(wrong), len(prompts), mean)
    return scores, mistakes


def _answers(model: Llama, encoder: ChatEncoder, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Generated texts in the order of `prompts`; prompts of like lengths run together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        made = greedy(model, [prompts[index] for index in chosen], encoder.end_id, _MAX_NEW_TOKENS)
        for index, ids in zip(chosen, made, strict=True):
            answers[index] = encoder.decode(ids)
    return answers


def markdown(scores: Mapping[str, Score]) -> str:
    """The table of the model card."""
    lines = ["| skill | right | of | prompt tokens (mean) |", "|---|---:|---:|---:|"]
    lines += [f"| {skill} | {s.share:.1%} | {s.total} | {s.tokens:.0f} |" for skill, s in scores.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=1_000_001, help="of the cases (default: %(default)s)")
    parser.add_argument("--count", type=int, default=200, help="cases per skill (default: %(default)s)")
    parser.add_argument("--mistakes", type=int, default=0, metavar="N", help="print the first N mistakes of each skill")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        parser.error(f"{options.model} holds no config.json; --model must name a checkpoint folder")
    torch.set_num_threads(options.threads)
    model, encoder = load_model(options.model), ChatEncoder.load(options.model)
    scores, mistakes = evaluate(model, encoder, by_skill(options.seed, options.count), silent=False)
    _print(scores, mistakes, options.mistakes)


def _print(scores: Mapping[str, Score], mistakes: Sequence[Mistake], shown: int) -> None:
    console = Console()
    table = Table("skill", "right", "of", "prompt tokens (mean)")
    for skill, score in scores.items():
        table.add_row(skill, f"{score.share:.1%}", str(score.total), f"{score.tokens:.0f}")
    console.print(table)
    for skill in scores:
        for mistake in [mistake for mistake in mistakes if mistake.skill == skill][:shown]:
            console.print(
                f"{skill}: {mistake.asked[-160:]!r} -> {mistake.answered[:160]!r}", markup=False, soft_wrap=True
            )


if __name__ == "__main__":
    main()
