"""What a worker makes of its settings: threads by the host's cores, weights of fewer bits in an unchanged KV layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from baton.core.errors import ConfigError
from baton.runtime import cores
from baton.runtime.settings import load
from baton.testing.checkpoints import make_checkpoint
from baton.worker.build import BuiltModel, build_model
from baton.worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("build") / "model", layers=2, hidden=64, max_position=256)


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def build(checkpoint: Path, **settings: object) -> BuiltModel:
    return build_model(WorkerSettings(model=str(checkpoint), kv_memory_bytes=1 << 20, **settings), epoch=1)


@pytest.mark.parametrize(
    ("settings", "threads", "chosen_by"),
    [
        ({}, 3, "this worker"),
        ({"host_workers": 3}, 1, "this worker"),
        ({"threads": 2}, 2, "threads"),
        ({"threads": 2, "host_workers": 3}, 2, "threads"),
    ],
)
def test_threads(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], threads: int, chosen_by: str
) -> None:
    monkeypatch.setattr(cores, "available", lambda: cores.Cores(16, 8, quota=4.0))
    with capture_logs() as logs:
        build(checkpoint, **settings)
    assert torch.get_num_threads() == threads
    [told] = [line for line in logs if line["event"] == "CPU threads"]
    assert (told["threads"], told["chosen_by"]) == (threads, chosen_by)
    assert told["host"] == "8 cores (16 hardware threads, quota 4)"


def test_quantized_weights_leave_the_kv_layout_alone(checkpoint: Path) -> None:
    exact, int8 = build(checkpoint), build(checkpoint, quantization="int8")
    assert int8.runner.layout == exact.runner.layout
    assert int8.runner.layout.fingerprint == exact.runner.layout.fingerprint


def test_quantizations_that_cannot_be(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="it must be one of none, int8, int4"):
        load(WorkerSettings, flags={"quantization": "int3"})
    with pytest.raises(ConfigError, match="deterministic = true needs quantization = none; it is int4"):
        build(checkpoint, quantization="int4", deterministic=True)
