"""Greedy tokens of the whole engine equal those of `transformers`, for each family, however the work is cut up."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers
from engine_harness import Harness, Pair

from baton.core.attempt import Attempt
from baton.core.sampling import SamplingParams
from baton.engine.plan import EngineConfig
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)

CONFIG = EngineConfig(max_running=16, max_batch_tokens=320, chunk_tokens=256)
Reference = Callable[[tuple[int, ...], int], list[int]]


class Model:
    """One checkpoint: runners of it, and what `transformers` makes of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self._model.generation_config.eos_token_id = None
        self.vocab_size = self._model.config.vocab_size
        self.reference = cache(self._generate)

    def runner(self) -> TorchModelRunner:
        return TorchModelRunner.load(self.path, dtype="float32")

    def prompt(self, length: int, seed: int = 0) -> tuple[int, ...]:
        rng = random.Random(10_000 * seed + length)
        return tuple(rng.randrange(8, self.vocab_size) for _ in range(length))

    def _generate(self, prompt: tuple[int, ...], n: int) -> list[int]:
        output = self._model.generate(
            torch.tensor([prompt]), max_new_tokens=n, do_sample=False, pad_token_id=0, use_cache=True
        )
        return output[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(str(make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, seed=1)))


def greedy(n: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True)


def test_prompts_of_all_lengths_chunked_and_batched(model: Model) -> None:
    harness = Harness(pages=300, config=CONFIG, runner=model.runner())
    prompts = [model.prompt(length) for length in (1, 2, 15, 16, 17, 31, 100, 257, 700, 3000)]
    attempts = {harness.submit(f"r{len(prompt)}", prompt, sampling=greedy(10)): prompt for prompt in prompts}
    harness.run()
    assert any(step.extend_tokens and step.decode_rows > 2 for step in harness.steps)
    for attempt, prompt in attempts.items():
        assert harness.outputs[attempt] == model.reference(prompt, 10), f"prompt of {len(prompt)} tokens"
    harness.assert_quiet()


def test_prefix_hits_of_prompts_and_of_answers(model: Model) -> None:
    harness = Harness(pages=60, config=CONFIG, runner=model.runner())
    prompt = model.prompt(70)
    for turn in range(3):
        attempt = harness.submit(f"turn{turn}", prompt, sampling=greedy(12))
        harness.run()
        assert harness.outputs[attempt] == model.reference(prompt, 12)
        assert (harness.cached[attempt] > 0) == (turn > 0)
        prompt += (*harness.outputs[attempt], *model.prompt(9, turn))
    branches = {harness.submit(f"b{i}", prompt + model.prompt(5, i), sampling=greedy(6)): i for i in range(4)}
    harness.run()
    for attempt, i in branches.items():
        assert harness.outputs[attempt] == model.reference(prompt + model.prompt(5, i), 6)
        assert harness.cached[attempt] >= 96
    harness.assert_quiet()


def test_forced_preemption(model: Model) -> None:
    harness = Harness(pages=16, config=CONFIG, runner=model.runner())
    prompts = [model.prompt(20 + 3 * i, i) for i in range(6)]
    attempts = [harness.submit(f"r{i}", prompt, sampling=greedy(40)) for i, prompt in enumerate(prompts)]
    harness.run()
    assert harness.preempted > 0
    for attempt, prompt in zip(attempts, prompts, strict=True):
        assert harness.outputs[attempt] == model.reference(prompt, 40)
    harness.assert_quiet()


def test_prefill_here_and_decode_there(model: Model) -> None:
    pair = Pair(prefill_pages=40, decode_pages=40, config=CONFIG, runners=(model.runner(), model.runner()))
    prompt = model.prompt(70)
    for turn in range(2):
        attempt: Attempt = pair.submit(f"turn{turn}", prompt, 12, sampling=greedy(12))
        pair.prefill.run()
        pair.decode.run()
        assert (pair.decode.reserved[attempt].first_page > 0) == (turn > 0)
        pair.hand_over(attempt)
        pair.decode.run()
        assert pair.tokens(attempt) == model.reference(prompt, 12)
        prompt += (*pair.tokens(attempt), *model.prompt(9, turn))
    pair.prefill.run()
    pair.prefill.assert_quiet()
    pair.decode.assert_quiet()
