"""`deterministic = true`: logits to the last bit the same, whatever shares the batch and however a prompt was cut."""

from __future__ import annotations

import shutil

import pytest
import torch
from paged_rows import PagedModel, Row

from baton.core.errors import ConfigError
from baton.engine.cpu.build import COMPILERS
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")
LENGTH = 150


def tokens_of(seed: int, count: int = LENGTH) -> list[int]:
    return torch.randint(6, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runner(request, tmp_path_factory) -> TorchModelRunner:
    folder = make_checkpoint(
        tmp_path_factory.mktemp("checkpoint"), "qwen3", layers=2, hidden=192, heads=6, head_dim=32, intermediate=2048,
        config={"use_sliding_window": True, "sliding_window": 70, "max_window_layers": 1},
    )  # fmt: skip
    return TorchModelRunner.load(folder, dtype=request.param, deterministic=True)


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def in_steps(runner: TorchModelRunner, sizes: list[int], companions: int = 0, seed: int = 0) -> torch.Tensor:
    """Logits of all positions of one request, run in steps of these sizes among so many others."""
    model = PagedModel(runner, seed=seed)
    row, others = Row(tokens_of(1)), [Row(tokens_of(10 + i, 400)) for i in range(companions)]
    parts = []
    for step, size in enumerate(sizes):
        work = [(other, 1 + (step + i) % 3 * 7) for i, other in enumerate(others) if other.cached < 350]
        before = sum(n for _, n in work[: len(work) // 2])
        work.insert(len(work) // 2, (row, size))
        parts.append(model.step(work, all_logits=True)[before : before + size])
    return torch.cat(parts)


@pytest.mark.parametrize("sizes", [[64, 64, 22], [1] * 20 + [129, 1], [7, 90, 1, 1, 51], [1] * 40 + [LENGTH - 40]])
def test_steps_and_companions_change_no_bit(runner, threads, sizes: list[int]) -> None:
    expected = in_steps(runner, [LENGTH])
    assert torch.equal(in_steps(runner, sizes, seed=1), expected)
    assert torch.equal(in_steps(runner, sizes[:30], companions=5, seed=2), expected[: sum(sizes[:30])])


def test_logits_of_the_last_token_alone(runner) -> None:
    """Only the rows whose logits are wanted go through the end of the model."""
    row = Row(tokens_of(1))
    assert torch.equal(PagedModel(runner).step([(row, LENGTH)])[0], in_steps(runner, [LENGTH])[-1])


def test_where_it_cannot_be_had(tmp_path) -> None:
    folder = make_checkpoint(tmp_path, head_dim=24)
    with pytest.raises(ConfigError, match="needs Baton's kernels"):
        TorchModelRunner.load(folder, deterministic=True)
    with pytest.raises(ConfigError, match="needs quantization = none; it is int8"):
        TorchModelRunner.load(folder, deterministic=True, quantization="int8")
