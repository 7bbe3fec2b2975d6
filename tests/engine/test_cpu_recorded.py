"""Recorded decode steps: the same logits to the last bit as without recording, whatever the model; what is recorded."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from family_checkpoints import Checkpoint
from paged_rows import PagedModel, Row

from baton.engine.cpu import recorded, tape
from baton.engine.cpu.build import COMPILERS
from baton.engine.runner import TorchModelRunner
from baton.models.gguf.folder import checkpoint_folder
from baton.testing.checkpoints import make_checkpoint
from baton.testing.gguf_files import q4_k_m, write

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")

MIXED = "Q4_K_M"  # values of another kind than queries and keys: a product in parts
RECORDED = ("llama 3", "mistral", "qwen3", "gemma 3", "lfm 2", "bamba", "qwen 3.5", MIXED)
OTHERS = ("granite", "olmo 2", "gpt-oss", "deepseek v3", "cohere 2")
LENGTHS = (40, 3, 17, 16)
SIZES = {"bamba": {"mamba_expand": 4, "mamba_n_heads": 16}}  # outputs in whole vectors, as quantized layers need


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("checkpoints")
    plain = make_checkpoint(made / "plain", hidden=256, heads=4, kv_heads=2, intermediate=512)
    write(plain, made / "mixed.gguf", q4_k_m)
    folders = {MIXED: checkpoint_folder(made / "mixed.gguf", made)}
    others = (name for name in (*RECORDED, *OTHERS) if name != MIXED)
    return folders | {name: Checkpoint(made / name, name, **SIZES.get(name, {})).folder for name in others}


def logits_of(runner: TorchModelRunner, seed: int) -> list[torch.Tensor]:
    """Of 40 steps in which between one and four rows decode, over pages whose places depend on `seed`."""
    model, rng = PagedModel(runner, seed=seed, in_place=True), random.Random(5)
    rows = [Row([rng.randrange(3, 160) for _ in range(length + 60)]) for length in LENGTHS]
    model.step([(row, length) for row, length in zip(rows, LENGTHS, strict=True)])
    steps = [rng.sample(rows, rng.randrange(1, 5)) for _ in range(40)]
    return [model.step([(row, 1) for row in step]).clone() for step in steps]


def load(folder: Path) -> TorchModelRunner:
    """Layers by own kernels on any processor."""
    quantization = "none" if folder.name == "mixed" else "int8"
    return TorchModelRunner.load(folder, dtype="bfloat16", quantization=quantization)


def recordings(runner: TorchModelRunner) -> dict[int, object]:
    return runner._recorded._recordings if runner._recorded is not None else {}


@pytest.mark.parametrize("name", [*RECORDED, *OTHERS])
def test_recording_changes_no_bit(folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = load(folders[name])
    ours = logits_of(runner, seed=1)
    records = name in RECORDED and (name != "qwen 3.5" or runner._kernels.multiplies_pairs)  # rates stay bfloat16
    assert set(recordings(runner)) == ({1, 2, 3, 4} if records else set())
    monkeypatch.setattr(recorded, "MOST_ROWS", 0)
    plain = load(folders[name])
    theirs = logits_of(plain, seed=2)
    assert not recordings(plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_steps_with_many_bytes_of_states_are_not_recorded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(folders["lfm 2"])
    monkeypatch.setattr(recorded, "MOST_STATE_BYTES", 2 * runner._states.row_bytes)
    logits_of(runner, seed=1)
    assert set(recordings(runner)) == {1, 2}


def test_another_pool_is_recorded_anew(folders: dict[str, Path]) -> None:
    runner = load(folders["qwen3"])
    first, second = logits_of(runner, seed=1), logits_of(runner, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_layers_by_torch_are_not_recorded(folders: dict[str, Path]) -> None:
    runner = TorchModelRunner.load(folders["qwen3"], dtype="float32")
    logits_of(runner, seed=1)
    assert not recordings(runner)


def test_calls_that_the_recording_misses_are_noticed(folders: dict[str, Path]) -> None:
    runner = load(folders["qwen3"])
    expected = logits_of(runner, seed=1)
    layers = runner._decoder._weights.layers
    layers[1].output._kernels = layers[1].output._kernels.separate()
    assert all(torch.equal(a, b) for a, b in zip(logits_of(runner, seed=2), expected, strict=True))
    assert not recordings(runner)


@pytest.mark.parametrize("seed", range(20))
def test_memory_is_shared_only_by_what_is_not_needed_at_once(seed: int) -> None:
    rng = random.Random(seed)
    blocks = []
    for _ in range(rng.randrange(1, 40)):
        first = rng.randrange(100)
        blocks.append(tape._Block(first, first + rng.randrange(12), rng.choice([1, 64, 100, 4096])))
    total = tape._place(blocks)
    for i, a in enumerate(blocks):
        assert a.offset % 64 == 0
        assert a.offset + a.nbytes <= total
        for b in blocks[:i]:
            at_once = a.first <= b.last and b.first <= a.last
            assert not at_once or a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    assert total <= sum(-(-block.nbytes // 64) * 64 for block in blocks)
