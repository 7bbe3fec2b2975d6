"""What to train, for how long and with what: the named recipes of the training command.

Numbers come from measurements that the README of this folder lists.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.bundled_model.batches import Stage
from tools.bundled_model.dialogue import Mix
from tools.bundled_model.model import ModelShape
from tools.bundled_model.tokenizer import VOCAB_SIZE

_EARLY, _MIDDLE, _LATE = Mix(copying=0.1), Mix(copying=0.1, drill=0.25), Mix(copying=0.05, drill=0.25)
_LAST = Mix(copying=0.05, drill=0.2)
_CURRICULUM = (
    Stage(0.06, (64, 128), (1.0, 1.0), Mix(copying=0.5)),
    Stage(0.15, (64, 128, 256), (1.0, 1.0, 1.0), Mix(copying=0.25), gaps=0.3),
    Stage(0.35, (128, 256, 512), (1.0, 1.0, 0.7), _EARLY, gaps=0.5),
    Stage(0.45, (128, 256, 512), (1.0, 1.0, 0.7), _MIDDLE, gaps=0.5, cuts=0.25),
    Stage(0.70, (128, 256, 512, 1024), (1.0, 1.0, 1.0, 0.5), _LATE, gaps=0.5, cuts=0.2),
    Stage(1.00, (128, 256, 512, 1024, 2048), (1.0, 1.0, 1.0, 0.7, 0.5), _LAST, gaps=0.5, cuts=0.1),
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


_MAIN = ModelShape(VOCAB_SIZE, 192, 512, 5, 6, 3, 32)  # 2.4 M parameters
_LARGE = ModelShape(VOCAB_SIZE, 256, 768, 6, 8, 4, 32)  # 5.2 M
_DRAFT = ModelShape(VOCAB_SIZE, 128, 288, 4, 4, 2, 32)  # 0.9 M

RECIPES = {
    "cpu": Recipe(_MAIN, 16_000, 4096, lr=1e-2, embedding_lr=5e-3),
    "gpu": Recipe(_LARGE, 20_000, 16_384, lr=1e-2, embedding_lr=5e-3),
    "draft": Recipe(_DRAFT, 8000, 4096, lr=1e-2, embedding_lr=5e-3),
    "trial": Recipe(_DRAFT, 2300, 4096, lr=1e-2, embedding_lr=5e-3),
}
