"""Workers whose pools are mirrored for their agents, as those on a GPU are, through the whole system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process import cluster
from test_equality import Reference, check, prompts

from baton.testing.checkpoints import make_checkpoint
from baton.worker import service
from baton.worker.build import BuiltModel, build_model
from baton.worker.settings import WorkerSettings


async def test_handoffs_between_mirrored_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    checkpoint = make_checkpoint(tmp_path / "model", "llama", max_position=4096)
    reference = Reference(checkpoint)

    def mirrored(settings: WorkerSettings, epoch: int) -> BuiltModel:
        return replace(build_model(settings, epoch), mirrored=True)

    monkeypatch.setattr(service, "build_model", mirrored)
    async with cluster(tmp_path, checkpoint) as running:
        await check(running, reference, prompts(reference.model.config.vocab_size, [3, 100, 700]))
        await running.quiet()
