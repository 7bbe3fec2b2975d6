"""A working set larger than the pools: what left them comes back from memory or disk, and is not computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_windows_e2e as windows
import torch
from in_process import Cluster, cluster
from test_equality import Reference, prompts
from test_pull import count

from baton.kv_agent import metrics as agent_metrics
from baton.router import policy_tiers
from baton.router.policy_pull import Holders
from baton.testing.checkpoints import make_checkpoint
from baton.worker import metrics, tiering

NEW_TOKENS = 8
POOL_PAGES = 98
BLOCK = 8192  # 2 layers x 2 x 16 tokens x 2 heads x 16 x 4 bytes


@pytest.fixture(autouse=True)
def whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are brought from a tier however slow that has just been: nothing here depends on the machine's speed."""
    for module in (tiering, policy_tiers):
        monkeypatch.setattr(module, "worth_restoring", lambda parts, tokens_per_s: (len(parts), 0.0))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return make_checkpoint(tmp_path / "ckpt", "llama", max_position=4096)


async def rounds(running: Cluster, batch: list[tuple[list[int], list[int]]]) -> tuple[list[float], float]:
    """Two rounds of the same requests, which get the tokens that they should: how many tokens were computed in each,
    and how many pages were restored in the second."""
    computed, restored = [], 0.0
    for _ in range(2):
        extended, pages = count(metrics.extend_tokens), count(metrics.restored_pages)
        for prompt, expected in batch:
            tokens, _ = await running.tokens(prompt, NEW_TOKENS)
            assert tokens == expected
        computed.append(extended())
        restored = pages()
    return computed, restored


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
        computed, restored = await rounds(running, batch)
        assert computed[0] == 100 * 20
        assert computed[1] <= 0.5 * computed[0], "an LRU cache of 98 pages would have helped with none of them"
        assert restored >= 40
        await running.quiet()


@pytest.mark.parametrize("model_type", ["gemma3_text", "lfm2"])
async def test_pages_of_several_kinds(model_type, tmp_path, monkeypatch):
    """Eight conversations of 200 tokens, twice over, in a pool for a few of them, half of it kept free: windows and
    states come back with the blocks of full attention."""
    monkeypatch.setattr(Holders, "best", lambda self, worker, cached: None)
    monkeypatch.setattr(tiering, "FREE_SHARE", 2)
    torch.set_num_threads(1)
    reference = windows.Reference(tmp_path / "ckpt", model_type)
    page, pages = {"gemma3_text": (BLOCK // 2, 130), "lfm2": (BLOCK, 44)}[model_type]  # of one layer, of two
    batch = [(prompt, reference.tokens(prompt, NEW_TOKENS)) for prompt in prompts(150, [200] * 8)]
    async with cluster(
        tmp_path,
        tmp_path / "ckpt",
        worker={"kv_memory_bytes": pages * page, "chunk_tokens": 64},
        agent={"host_tier_bytes": 800 * page},
        router={"local_extend_tokens": 0},
    ) as running:
        computed, restored = await rounds(running, batch)
        assert computed[1] <= 0.5 * computed[0], computed
        assert restored >= 8 * 12
        await running.quiet()


def from_disk() -> float:
    return agent_metrics.tier_restored.labels(tier="disk")._value.get()


async def test_a_working_set_that_no_memory_holds_and_a_restart(checkpoint, tmp_path, monkeypatch):
    """20 conversations of 7 pages, with pools and memory for 98 pages each: nothing is in either when its turn comes.
    Then all agents, workers and the index start anew, and find the disks."""
    monkeypatch.setattr(Holders, "best", lambda self, worker, cached: None)
    reference = Reference(checkpoint)
    batch = [(prompt, reference.tokens(prompt, NEW_TOKENS)) for prompt in prompts(501, [100] * 20)]
    computed, before = [], from_disk()
    for name, rounds in (("first", 2), ("second", 1)):
        (tmp_path / name).mkdir()
        async with cluster(
            tmp_path / name,
            checkpoint,
            worker={"kv_memory_bytes": (POOL_PAGES + 2) * BLOCK},
            agent={
                "host_tier_bytes": 24 * BLOCK,
                "disk_tier_path": str(tmp_path / "disk-{worker}"),
                "disk_tier_bytes": 600 * BLOCK,
            },
            router={"local_extend_tokens": 0},
        ) as running:
            for _ in range(rounds):
                extended = count(metrics.extend_tokens)
                for prompt, expected in batch:
                    tokens, _ = await running.tokens(prompt, NEW_TOKENS)
                    assert tokens == expected
                computed.append(extended())
            await running.quiet()
    assert computed[0] == 100 * 20
    assert computed[1] <= 0.6 * computed[0] and computed[2] <= 0.8 * computed[0], computed
    assert from_disk() - before >= 80
