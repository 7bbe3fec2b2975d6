"""Pooling requests driven through an engine, and small checkpoints whose answers transformers can give too."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from baton.core.attempt import Attempt
from baton.core.hashing import root_hash
from baton.core.pooling import PoolingParams, Task
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest, StepEngine, StepOutput
from baton.engine.engine import EngineCore
from baton.engine.plan import EngineConfig
from baton.engine.pool import KvPool
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

EMBED = PoolingParams(Task.EMBED)
_NUMBERS = itertools.count(1)
_ROOT = root_hash("", "")


def tokens_of(seed: int, count: int, vocab: int = 512) -> list[int]:
    return torch.randint(6, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def sentence_transformer(folder: Path, *modules: str, pooling: str = "lasttoken", **config: object) -> Path:
    """Add the files of sentence-transformers to a checkpoint; `modules` follow the pooling."""
    paths = ["", "1_Pooling", *(f"{index}_{name}" for index, name in enumerate(modules, start=2))]
    kinds = ["Transformer", "Pooling", *modules]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "1_Pooling/config.json", {f"pooling_mode_{pooling}": True, **config})
    return folder


def saved_as(kind: str, folder: Path, target: Path, **options: object) -> Path:
    """The checkpoint `folder`, loaded by a class of transformers and saved again: other head, other tensor names."""
    import transformers

    torch.manual_seed(0)
    getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, **options).save_pretrained(target)
    return target


def engine_of(folder: Path, *, pages: int = 64, config: EngineConfig | None = None) -> EngineCore:
    runner = TorchModelRunner.load(folder)
    config = config or EngineConfig(max_running=8, max_batch_tokens=64, chunk_tokens=32)
    return EngineCore(runner, KvPool(runner.layout, pages), config, pooling=runner)


class Asked:
    """Requests of one engine, run to their ends."""

    def __init__(self, engine: StepEngine) -> None:
        self.engine = engine
        self.steps: list[StepOutput] = []
        self.cached: dict[Attempt, int] = {}

    def submit(self, prompt: Sequence[int], params: PoolingParams | None = EMBED, *, tokens: int = 4) -> Attempt:
        """`params` None: a generation of so many `tokens`."""
        attempt = Attempt(f"r{next(_NUMBERS)}", 0)
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        self.engine.submit(EngineRequest(attempt, prompt, len(prompt), sampling, _ROOT, pooling=params))
        return attempt

    def run(self) -> tuple[dict[Attempt, torch.Tensor], dict[Attempt, list[int]]]:
        """Vectors and tokens of all that was submitted. Raises the first failure."""
        vectors: dict[Attempt, torch.Tensor] = {}
        tokens: dict[Attempt, list[int]] = {}
        while self.engine.has_work:
            output = self.engine.step()
            self.steps.append(output)
            for failed in output.failed:
                raise failed.error
            self.cached |= {admitted.attempt: admitted.cached_tokens for admitted in output.admitted}
            for row in output.rows:
                if row.vector is not None:
                    assert not row.token_ids and row.finish is not None and row.attempt not in vectors
                    vectors[row.attempt] = torch.tensor(row.vector)
                else:
                    tokens.setdefault(row.attempt, []).extend(row.token_ids)
        return vectors, tokens

    def answers(self, prompts: Sequence[Sequence[int]], params: PoolingParams = EMBED) -> list[torch.Tensor]:
        attempts = [self.submit(prompt, params) for prompt in prompts]
        vectors, _ = self.run()
        return [vectors[attempt] for attempt in attempts]


@torch.inference_mode()
def their_states(folder: Path, tokens: Sequence[int]) -> torch.Tensor:
    """Final hidden states [T, E], by transformers."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    return model(torch.tensor([list(tokens)])).last_hidden_state[0]


__all__ = ["Asked", "EMBED", "engine_of", "make_checkpoint", "saved_as", "sentence_transformer", "their_states",
           "tokens_of", "write_json"]  # fmt: skip
