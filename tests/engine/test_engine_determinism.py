"""`deterministic = true` over the whole engine: tokens and logprobs to the last bit the same, whatever the load."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine_harness import LOOPS, Harness, Loop

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError
from baton.core.sampling import SamplingParams
from baton.engine.plan import EngineConfig
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchModelRunner:
    folder = Path(make_checkpoint(tmp_path_factory.mktemp("determinism"), "llama", seed=3))
    try:
        return TorchModelRunner.load(folder, dtype=request.param, deterministic=True)
    except ConfigError as error:
        pytest.skip(f"needs the kernels: {error}")


def params(seed: int, n: int) -> SamplingParams:
    temperature = (0.0, 0.7, 1.0)[seed % 3]
    penalty = 1.2 if seed % 4 == 0 else 1.0
    return SamplingParams(
        temperature=temperature, seed=seed, top_p=0.9, max_tokens=n, top_logprobs=2, ignore_eos=True,
        repetition_penalty=penalty,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_batch_chunks_cache_preemption_and_loop_change_no_bit(
    runner: TorchModelRunner, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    stems = [[rng.randrange(8, runner.vocab_size) for _ in range(70)] for _ in range(2)]
    work = []
    for i in range(10):
        tail = [rng.randrange(8, runner.vocab_size) for _ in range(rng.randrange(1, 60))]
        work.append((rng.choice(stems)[: rng.randrange(71)] + tail, params(i, rng.randrange(4, 24))))

    def run(harness: Harness, at_once: bool) -> list[list[tuple]]:
        order = list(range(len(work)))
        rng.shuffle(order)
        for i in order:
            harness.submit(f"r{i}", work[i][0], sampling=work[i][1])
            for _ in range(rng.randrange(3)) if at_once else range(1_000):
                if harness.engine.has_work:
                    harness.step()
        harness.run()
        harness.assert_quiet()
        return [[(row.token_ids, row.logprobs) for row in harness.rows[Attempt(f"r{i}")]] for i in range(len(work))]

    alone = run(Harness(300, EngineConfig(max_running=1, max_batch_tokens=512, chunk_tokens=256), runner), False)
    for loop in LOOPS:
        monkeypatch.setattr(Loop, "name", loop)
        chunk = rng.choice([16, 32, 64])
        config = EngineConfig(max_running=8, max_batch_tokens=128, chunk_tokens=chunk)
        busy = Harness(rng.choice([24, 300]), config, runner)
        assert run(busy, True) == alone, f"{loop}, chunks of {chunk}"
