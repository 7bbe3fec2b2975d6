"""One architecture tried: a tiny random checkpoint through Baton, its logits held against those of `transformers`."""

from __future__ import annotations

import enum
import random
import tempfile
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from transformers import PreTrainedModel

from baton.core.errors import CheckpointError
from baton.engine.loading import LoadedRunner, load_runner
from baton.engine.model.through.passes import Passes
from baton.engine.model.through.runner import ThroughRunner
from baton.engine.model.through.selfcheck import pages_needed, run_in_steps
from baton.engine.pool import KvPool
from tools.models_table.tiny import VOCAB, save, tiny_model

LENGTHS = (90, 71)
STEPS = ((37, 30), (1, 1), (1, 1), (51, 39))
TOLERANCE = 2e-3  # of the logits' standard deviation, for the worst logit


class Way(enum.Enum):
    NATIVE = "native"
    THROUGH = "through"
    APART = "through, row by row"
    RECOMPUTED = "through, recomputed"
    NOT = "not"


_WAYS = {Passes.TOGETHER: Way.THROUGH, Passes.APART: Way.APART, Passes.RECOMPUTED: Way.RECOMPUTED}
_DRAFTS = "it drafts for another model, whose keys and values it reads"
_SOUNDS = "it goes on with codes of sound, not text"
_NO_TEXT_ALONE = {
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _SOUNDS,
    "musicgen_melody": _SOUNDS,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    way: Way
    reason: str = ""


def tried(model_type: str, architecture: str) -> Verdict:
    """How the architecture runs, or why it does not."""
    try:
        model = tiny_model(model_type)
        own = [own_logits(model, tokens) for tokens in texts()]
    except Exception as error:  # whatever its modelling code raises
        unknown = f"no tiny model of it that takes text alone could be made ({type(error).__name__})"
        return Verdict(Way.NOT, _NO_TEXT_ALONE.get(model_type, unknown))
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder), model_type)
        try:
            runner = load_runner(folder)
        except CheckpointError as error:
            return Verdict(Way.NOT, _reason(error, folder))
        got = logits_in_pieces(runner)
    if isinstance(runner, ThroughRunner) and runner.passes is Passes.RECOMPUTED:
        ends = [list(accumulate(lengths)) for lengths in zip(*STEPS, strict=True)]
        got = [logits[[end - 1 for end in mine]] for logits, mine in zip(got, ends, strict=True)]
        own = [generated_from(model, text, mine) for text, mine in zip(texts(), ends, strict=True)]
    if not all(agree(ours, theirs) for ours, theirs in zip(got, own, strict=True)):
        raise AssertionError(f"{architecture} passes its self-check, but its logits differ")
    if isinstance(runner, ThroughRunner):
        return Verdict(_WAYS[runner.passes])
    return Verdict(Way.NATIVE)


def texts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(3, VOCAB) for _ in range(length)] for length in LENGTHS]


@torch.inference_mode()
def own_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[T, V] of `transformers` alone."""
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits


@torch.inference_mode()
def generated_from(model: PreTrainedModel, text: list[int], ends: list[int]) -> torch.Tensor:
    """Logits that `generate` draws from after the first so many tokens."""
    found = []
    for end in ends:
        out = model.generate(
            torch.tensor([text[:end]]), max_new_tokens=1, do_sample=False, use_cache=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        found.append(out.logits[0][0].float())
    return torch.stack(found)


def logits_in_pieces(runner: LoadedRunner) -> list[torch.Tensor]:
    """Baton's, of two texts in steps that they share."""
    layout = runner.layout
    runner.bind_pool(KvPool(layout, pages_needed(layout, LENGTHS)).tensor)
    return run_in_steps(runner.forward, texts(), STEPS, layout, torch.device("cpu"))


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() < TOLERANCE * theirs.std())


def _reason(error: CheckpointError, folder: str) -> str:
    """Why the last thing that was tried did not work."""
    text = error.message.removeprefix(f"{folder}/config.json: ").removeprefix(f"{folder}: ")
    return text.rsplit("cannot run through transformers: ", 1)[-1].rsplit("; ", 1)[-1]
