"""The checkpoints that the engines are compared on: random weights in bf16, made by this script.

python benchmarks/engine/models.py FOLDER [NAME ...]
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.testing.checkpoints import make_checkpoint


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder with tied embeddings; `config` goes to make_checkpoint."""

    name: str
    title: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Weights in matrices of one layer."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """Weights that a step reads: all layers and the output head."""
        return self.layers * self.layer_weights + self.hidden * self.vocab

    @property
    def kv_token_bytes(self) -> int:
        """K and V of one token, all layers, bf16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2

    def path(self, folder: Path) -> Path:
        return folder / self.name


MODELS = (
    Model("llama-100m", "Llama, 100 M", "llama", 12, 768, 12, 4, 64, 2048, 32_000),
    Model("qwen3-600m", "Qwen3, 600 M", "qwen3", 28, 1024, 16, 8, 128, 3072, 151_936),
    Model("tiny", "tiny (smoke test)", "llama", 2, 128, 4, 2, 32, 256, 32_000),
)
BY_NAME = {model.name: model for model in MODELS}
MAX_POSITION = 8192


def make(model: Model, folder: Path) -> Path:
    """The checkpoint folder of `model`, made on first use, whole or not at all."""
    path = model.path(folder)
    if (path / "config.json").exists():
        return path
    draft = folder / f".{model.name}"
    shutil.rmtree(draft, ignore_errors=True)
    shape: dict[str, Any] = {
        key: getattr(model, key)
        for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab")
    }
    make_checkpoint(draft, model.family, dtype="bfloat16", tied=True, max_position=MAX_POSITION, **shape)
    draft.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*BY_NAME, []], metavar="NAME")
    given = parser.parse_args()
    for name in given.names or ["llama-100m", "qwen3-600m"]:
        print(make(BY_NAME[name], given.folder))


if __name__ == "__main__":
    main()
