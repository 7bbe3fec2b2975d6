"""One run of training: model, optimizers, the step, held-out accuracy, and checkpoints that make it resumable.

Knows batches and recipes; knows no command line, no progress display and no export.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from tools.bundled_model.batches import Batch, BatchPlan
from tools.bundled_model.model import Llama
from tools.bundled_model.optimizer import optimizers
from tools.bundled_model.recipes import Recipe

CHECKPOINT = "training.pt"


@dataclass(frozen=True, slots=True)
class StepResult:
    """`exact` maps a skill to (messages predicted without any mistake, messages), tokens before given."""

    loss: float
    tokens: int
    exact: Mapping[str, tuple[int, int]]


class Trainer:
    """State of a run. Not thread-safe. `step`: steps done; `spent_s`: time spent on them, interruptions left out."""

    def __init__(self, recipe: Recipe, seed: int, device: torch.device, *, bf16: bool, compiled: bool = False) -> None:
        torch.manual_seed(seed)
        self.recipe, self.seed, self.device = recipe, seed, device
        self.step, self.spent_s = 0, 0.0
        self.model = Llama(recipe.shape).to(device)
        self._bf16 = bf16
        self._optimizers = optimizers(self.model, recipe.lr, recipe.weight_decay, recipe.embedding_lr)
        self._loss = torch.compile(self._loss_and_hits, dynamic=True) if compiled else self._loss_and_hits

    def plan(self) -> BatchPlan:
        recipe = self.recipe
        return BatchPlan(self.seed, recipe.steps, recipe.tokens, recipe.shape.context_tokens, recipe.stages)

    def train_step(self, batch: Batch) -> StepResult:
        """Learn from one batch."""
        batch = batch.to(self.device)
        self._schedule()
        with self._precision():
            loss, hits = self._loss(batch.ids, batch.positions, batch.sources, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return StepResult(loss.item(), batch.ids.numel(), exact_by_skill(batch, hits))

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> StepResult:
        """Loss and exact messages of held-out batches. A message that is right token by token, given its own
        beginning, is what greedy generation would produce."""
        losses: list[float] = []
        tokens, exact = 0, dict[str, tuple[int, int]]()
        for batch in batches:
            batch = batch.to(self.device)
            with self._precision():
                loss, hits = self._loss(batch.ids, batch.positions, batch.sources, batch.targets)
            losses.append(loss.item())
            tokens += batch.ids.numel()
            exact = merged(exact, exact_by_skill(batch, hits))
        return StepResult(sum(losses) / len(losses), tokens, exact)

    def save(self, folder: Path) -> None:
        """Write the state so that a crash leaves either the old or the new one."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "step": self.step,
            "spent_s": self.spent_s,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        partial = folder / f"{CHECKPOINT}.partial"
        torch.save(state, partial)
        os.replace(partial, folder / CHECKPOINT)

    def load(self, folder: Path) -> bool:
        """Take up the state in `folder`; False when there is none. Raises ValueError when it is of another run."""
        file = folder / CHECKPOINT
        if not file.is_file():
            return False
        state = torch.load(file, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe) or state["seed"] != self.seed:
            raise ValueError(f"{file} belongs to another recipe or seed; choose an empty --run folder or remove it")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.spent_s = int(state["step"]), float(state["spent_s"])
        return True

    def _schedule(self) -> None:
        factor = self.recipe.lr_factor(self.step)
        for optimizer, lr in zip(self._optimizers, (self.recipe.lr, self.recipe.embedding_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _loss_and_hits(
        self, ids: torch.Tensor, positions: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy over the learned tokens, and which of them would be chosen greedily."""
        hidden = self.model.hidden(ids, positions).flatten(0, 1)[sources]
        logits = self.model.logits(hidden)
        return F.cross_entropy(logits, targets), logits.detach().argmax(-1) == targets


def exact_by_skill(batch: Batch, hits: torch.Tensor) -> dict[str, tuple[int, int]]:
    """Messages of each skill without a wrong token, and all messages of the skill."""
    wrong = torch.zeros(len(batch.skills), dtype=torch.int64, device=hits.device)
    wrong.index_add_(0, batch.turns, (~hits).long())
    counts: dict[str, tuple[int, int]] = {}
    for skill, mistakes in zip(batch.skills, wrong.tolist(), strict=True):
        right, total = counts.get(skill, (0, 0))
        counts[skill] = (right + (mistakes == 0), total + 1)
    return counts


def merged(a: Mapping[str, tuple[int, int]], b: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Counts of both, skill by skill."""
    none = (0, 0)
    return {
        skill: (a.get(skill, none)[0] + b.get(skill, none)[0], a.get(skill, none)[1] + b.get(skill, none)[1])
        for skill in sorted({*a, *b})
    }
