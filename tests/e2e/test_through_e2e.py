"""Models through `transformers` in the running system: real workers, agents and handoffs, the gateway before them."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import httpx
import pytest
import torch
from in_process import MODEL, cluster

from baton.testing.checkpoints import make_checkpoint
from tools.models_table.tiny import tiny_model

NEW_TOKENS = 16


@pytest.mark.parametrize("model_type", ["gpt2", "minimax"])
async def test_handed_over_cached_and_batched(tmp_path: Path, model_type: str) -> None:
    """Greedy tokens of all prompts at once, and of all again, are those of `transformers`."""
    torch.set_num_threads(1)
    folder = make_checkpoint(tmp_path / "model")  # for its tokenizer
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    model = tiny_model(model_type, vocab_size=vocab, tie_word_embeddings=False)
    for file in folder.glob("model*.safetensors"):
        file.unlink()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    draw = random.Random(1)
    prompts = [[draw.randrange(10, vocab) for _ in range(length)] for length in (5, 40, 130, 300)]
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=2)[0].tolist()
        for prompt in prompts
    ]
    async with cluster(tmp_path, folder, worker={"chunk_tokens": 64}, gateway=True) as running:
        for _ in range(2):
            got = await asyncio.gather(*(running.tokens(prompt, NEW_TOKENS, ignore_eos=True) for prompt in prompts))
            assert [prompt + tokens for prompt, (tokens, _) in zip(prompts, got, strict=True)] == expected
        assert any(end.usage.cached_tokens > 0 for _, end in got)
        await running.quiet()
        async with httpx.AsyncClient(base_url=running.gateway_url) as client:
            body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
            answer = await client.post("/v1/completions", json=body, timeout=30)
            assert answer.json()["usage"]["completion_tokens"] == 4, answer.text
            body = {"model": MODEL, "input": "Once upon a time"}
            answer = await client.post("/v1/embeddings", json=body, timeout=30)
            assert len(answer.json()["data"][0]["embedding"]) == model.config.hidden_size, answer.text
