"""Make a checkpoint folder out of a training run, evaluate it, and write its card.

`python -m tools.bundled_model.export --run RUN --out FOLDER`.

The card's figures are measured on the exported bf16 weights, by the same code as `tools.bundled_model.evaluation`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tools.bundled_model.card import Origin, card
from tools.bundled_model.cases import by_skill
from tools.bundled_model.checkpoint import load_model, save_model
from tools.bundled_model.encoding import ChatEncoder
from tools.bundled_model.evaluation import evaluate, markdown
from tools.bundled_model.model import Llama, ModelShape
from tools.bundled_model.tokenizer import save as save_tokenizer
from tools.bundled_model.training import CHECKPOINT

_SEED = 1_000_001


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    if not (options.run / CHECKPOINT).is_file():
        parser.error(f"{options.run} holds no {CHECKPOINT}; --run must name the --run folder of a training")
    torch.set_num_threads(options.threads)
    console = Console()
    state = torch.load(options.run / CHECKPOINT, map_location="cpu", weights_only=True)
    encoder = ChatEncoder.load(options.run)
    model = _trained(state)
    save_model(model, options.out, end_id=encoder.end_id, pad_id=encoder.pad_id)
    save_tokenizer(encoder.tokenizer, options.out, model.shape.context_tokens)
    scores, _ = evaluate(load_model(options.out), encoder, by_skill(_SEED, options.count), silent=False)
    origin = Origin(options.name, model.shape, state, options.hardware, options.draft_of)
    (options.out / "README.md").write_text(card(origin, markdown(scores), _SEED, options.count))
    size = sum(file.stat().st_size for file in options.out.iterdir())
    console.print(markdown(scores), markup=False)
    console.print(f"{options.out}: {size / 1e6:.1f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--name", default="baton-tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--draft-of", default="", metavar="NAME", help="the model whose tokens it is to guess")
    parser.add_argument("--hardware", default="", help='what it was trained on, for the card: "one core of ..."')
    parser.add_argument("--count", type=int, default=200, help="evaluation cases per skill (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return parser


def _trained(state: dict[str, Any]) -> Llama:
    model = Llama(ModelShape(**state["recipe"]["shape"]))
    model.load_state_dict(state["model"])
    return model.eval()


if __name__ == "__main__":
    main()
