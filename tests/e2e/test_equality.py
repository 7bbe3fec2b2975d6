"""Greedy tokens of the running system equal those of `transformers`: handed over, cached, batched, or none of it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from in_process import Cluster, cluster
from transformers import AutoModelForCausalLM

from baton.testing.checkpoints import make_checkpoint

NEW_TOKENS = 24


class Reference:
    """`transformers` on the same checkpoint, fp32, greedy."""

    def __init__(self, path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.eval()

    def tokens(self, prompt: list[int], max_tokens: int = NEW_TOKENS) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
            )
        return out[0, len(prompt) :].tolist()


def prompts(vocab: int, lengths: list[int], seed: int = 7) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(10, vocab) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, request) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ckpt") / request.param, request.param, max_position=4096)


async def check(running: Cluster, reference: Reference, batch: list[list[int]]) -> None:
    """All prompts at once, then all again: with prefix hits."""
    expected = [reference.tokens(prompt) for prompt in batch]
    for _ in range(2):
        got = await asyncio.gather(*(running.tokens(prompt, NEW_TOKENS) for prompt in batch))
        assert [tokens for tokens, _ in got] == expected
    assert any(end.usage.cached_tokens > 0 for _, end in got)
    await running.quiet()


@pytest.mark.parametrize("checkpoint", ["llama", "mistral", "qwen2", "qwen3"], indirect=True)
async def test_disaggregated(checkpoint, tmp_path):
    torch.set_num_threads(1)
    reference = Reference(checkpoint)
    batch = prompts(reference.model.config.vocab_size, [1, 2, 15, 16, 17, 33, 250, 700, 3000])
    async with cluster(tmp_path, checkpoint, worker={"chunk_tokens": 128}) as running:
        await check(running, reference, batch)


@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
@pytest.mark.parametrize("transport", ["ucx", "tcp"])
async def test_long_prompts_over_each_transport(checkpoint, tmp_path, transport):
    reference = Reference(checkpoint)
    batch = prompts(reference.model.config.vocab_size, [3000, 1024, 1025, 100])
    async with cluster(tmp_path, checkpoint, transport=transport, worker={"chunk_tokens": 256}) as running:
        await check(running, reference, batch)


@pytest.mark.parametrize("checkpoint", ["llama", "mistral", "qwen2", "qwen3"], indirect=True)
async def test_unified(checkpoint, tmp_path):
    reference = Reference(checkpoint)
    batch = prompts(reference.model.config.vocab_size, [1, 40, 700, 33, 3000])
    async with cluster(tmp_path, checkpoint, prefill=0, decode=0, unified=1) as running:
        await check(running, reference, batch)


@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True)
async def test_pages_run_out(checkpoint, tmp_path):
    """A decode pool that cannot hold all running requests at once: they are paused and resumed, none differs."""
    reference = Reference(checkpoint)
    batch = prompts(reference.model.config.vocab_size, [30] * 12)
    expected = [reference.tokens(prompt, 120) for prompt in batch]
    # 2 layers x 2 x 16 tokens x 2 heads x 16 x 4 bytes: a page of all layers is 8 KiB; 46 of them hold 4.6 requests.
    async with cluster(tmp_path, checkpoint, worker={"kv_memory_bytes": 48 * 8192}) as running:
        got = await asyncio.gather(*(running.tokens(prompt, 120) for prompt in batch))
        assert [tokens for tokens, _ in got] == expected
        await running.quiet()
