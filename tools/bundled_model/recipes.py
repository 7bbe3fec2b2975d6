"""What to train, for how long and with what: the named recipes of the training command.

Numbers come from measurements that the README of this folder lists.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.bundled_model.batches import Stage
from tools.bundled_model.model import ModelShape
from tools.bundled_model.tokenizer import VOCAB_SIZE

_CURRICULUM = (
    Stage(0.25, (128, 256), (1.0, 1.0)),
    Stage(0.60, (128, 256, 512), (1.0, 1.0, 1.0)),
    Stage(0.85, (128, 256, 512, 1024), (1.0, 1.0, 1.0, 1.0)),
    Stage(1.00, (128, 256, 512, 1024, 2048), (1.0, 1.0, 1.0, 1.0, 1.0)),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`steps` of about `tokens` tokens each. Learning rates rise over `warmup` steps, stay, and fall to zero over the
    last `decay_share` of all steps."""

    shape: ModelShape
    steps: int
    tokens: int
    lr: float
    embedding_lr: float
    weight_decay: float = 0.1
    warmup: int = 100
    decay_share: float = 0.4
    clip: float = 1.0
    stages: tuple[Stage, ...] = _CURRICULUM

    def lr_factor(self, step: int) -> float:
        left = (self.steps - step) / max(1, round(self.steps * self.decay_share))
        return min(1.0, (step + 1) / self.warmup, left)


RECIPES = {
    "main": Recipe(ModelShape(VOCAB_SIZE, 192, 512, 6, 6, 2, 32), 5000, 8192, lr=3e-3, embedding_lr=3e-3),
}
