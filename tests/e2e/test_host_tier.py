"""A working set larger than the pools: what left them comes back from host memory, and is not computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from in_process import cluster
from test_equality import Reference, prompts
from test_pull import count

from baton.router.policy_pull import Holders
from baton.testing.checkpoints import make_checkpoint
from baton.worker import metrics

NEW_TOKENS = 8
POOL_PAGES = 98
BLOCK = 8192  # 2 layers x 2 x 16 tokens x 2 heads x 16 x 4 bytes


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return make_checkpoint(tmp_path / "ckpt", "llama", max_position=4096)


async def test_a_working_set_that_no_pool_holds(checkpoint, tmp_path, monkeypatch):
    """20 conversations of 7 pages each, twice over: 140 pages, of which a pool holds 98 and keeps an eighth free."""
    monkeypatch.setattr(Holders, "best", lambda self, worker, cached: None)  # what helps here is the tier
    reference = Reference(checkpoint)
    batch = [(prompt, reference.tokens(prompt, NEW_TOKENS)) for prompt in prompts(500, [100] * 20)]
    async with cluster(
        tmp_path,
        checkpoint,
        worker={"kv_memory_bytes": (POOL_PAGES + 2) * BLOCK},
        agent={"host_tier_bytes": 400 * BLOCK},
        router={"local_extend_tokens": 0},
    ) as running:
        computed = []
        for _ in range(2):
            extended, restored = count(metrics.extend_tokens), count(metrics.restored_pages)
            for prompt, expected in batch:
                tokens, _ = await running.tokens(prompt, NEW_TOKENS)
                assert tokens == expected
            computed.append(extended())
        assert computed[0] == 100 * 20
        assert computed[1] <= 0.5 * computed[0], "an LRU cache of 98 pages would have helped with none of them"
        assert restored() >= 40
        await running.quiet()
