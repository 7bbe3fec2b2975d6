"""Models with sliding layers, with layers that keep a state, or with latents, in the running system: pages out of a
window are let go of, states are written over, all of it passes from worker to worker, and tokens stay those of
`transformers`."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from in_process import Cluster, cluster, until
from test_pull import PATIENT, Placement, count, placement  # noqa: F401 (a fixture)
from transformers import AutoConfig, AutoModelForCausalLM

from baton.client import FinishedEvent, GenerateRequest
from baton.core.sampling import SamplingParams
from baton.worker import metrics
from baton.worker.dispatcher import Dispatcher
from baton.worker.sessions import RouterSession

NEW_TOKENS = 24
WINDOW = 40
SIZES = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 2048, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2,
    "sliding_window": WINDOW,
}  # fmt: skip
LATENTS = {
    "num_hidden_layers": 2, "q_lora_rank": 40, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_group": 4, "topk_group": 2, "moe_intermediate_size": 48, "first_k_dense_replace": 1, "sliding_window": None,
}  # fmt: skip
MODELS = {
    "gemma3_text": {"num_hidden_layers": 6, "query_pre_attn_scalar": 10},  # one full layer, five that slide
    "mistral": {"num_hidden_layers": 3},  # all slide
    "deepseek_v3": LATENTS,
    "mamba": {"num_hidden_layers": 2, "state_size": 8, "sliding_window": None},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 32},
}


class Reference:
    """A tiny random checkpoint in `folder`, and greedy tokens of its family's own code in float32."""

    def __init__(self, folder: Path, model_type: str) -> None:
        config = AutoConfig.for_model(model_type, **(SIZES | MODELS[model_type]))
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        with torch.inference_mode():
            for parameter in self.model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)  # else a random model says the same whatever it is told
        self.model.save_pretrained(folder)

    def tokens(self, prompt: list[int], n: int = NEW_TOKENS) -> list[int]:
        ids = torch.tensor([prompt])
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, eos_token_id=1
        )
        return out[0, len(prompt) :].tolist()


@pytest.fixture(params=MODELS)
def reference(request, tmp_path) -> Reference:
    torch.set_num_threads(1)
    return Reference(tmp_path / "checkpoint", request.param)


async def check(running: Cluster, reference: Reference) -> int:
    """Prompts of many windows at once, then once more with prefix hits, then branches of them. Returns how many bytes
    were handed over."""
    handed_over = 0
    draw = random.Random(3)
    batch = [[draw.randrange(10, 160) for _ in range(length)] for length in (1, 16, 39, 41, 130, 400)]
    for prompts in (batch, batch, [[*prompt[: len(prompt) // 2], 7, 8] for prompt in batch]):
        expected = [reference.tokens(prompt) for prompt in prompts]
        got = await asyncio.gather(*(running.tokens(prompt, NEW_TOKENS) for prompt in prompts))
        assert [tokens for tokens, _ in got] == expected
        handed_over += sum(end.usage.handoff_bytes for _, end in got)
    assert any(end.usage.cached_tokens > 0 for _, end in got)
    await running.quiet()
    return handed_over


@pytest.fixture
def streams(monkeypatch) -> dict[str, RouterSession]:
    """The router's stream to each worker."""
    opened, open_session = {}, Dispatcher.open_session

    def noted(self: Dispatcher, router_id: str) -> RouterSession:
        session = opened[self.description.worker_id] = open_session(self, router_id)
        return session

    monkeypatch.setattr(Dispatcher, "open_session", noted)
    return opened


async def migrate(
    running: Cluster,
    reference: Reference,
    placement: Placement,  # noqa: F811
    streams: dict[str, RouterSession],
) -> None:
    """A conversation that goes on with two workers that have none of it, the second of which is lost on the way, and
    ends with the first two: what was computed before is pulled, and the answer is whole."""
    draw = random.Random(5)
    prompt = [draw.randrange(10, 160) for _ in range(300)]
    answer, _ = await running.tokens(prompt, NEW_TOKENS)
    prompt += [*answer, *(draw.randrange(10, 160) for _ in range(30))]
    await index_settled(running)
    placement.prefill, placement.decode = "prefill-1", "decode-1"
    computed, pulled = count(metrics.extend_tokens), count(metrics.pulled_tokens)
    sampling = SamplingParams(temperature=0.0, max_tokens=100)
    tokens, end = [], None
    async for event in running.client.generate(GenerateRequest("test-model", prompt, sampling)):
        if isinstance(event, FinishedEvent):
            end = event
            break
        tokens += event.token_ids
        if placement.decode == "decode-1" and len(tokens) > 2:
            placement.prefill, placement.decode = "prefill-0", "decode-0"
            streams["decode-1"].close()
    assert tokens == reference.tokens(prompt, 100)
    assert end is not None
    assert end.usage.attempts == 2
    assert (pulled() > 250, end.usage.cached_tokens > 250, computed() < 250) == (True, True, True)


async def index_settled(running: Cluster) -> None:
    """Whatever workers had to tell of their blocks is known to the router."""
    seen: list[int] = []

    async def quiet() -> bool:
        seen.append((await running.client.fleet()).index_blocks)
        return len(seen) > 4 and len(set(seen[-5:])) == 1

    await until(quiet, "an index that does not change")


@pytest.mark.parametrize("reference", ["gemma3_text", "deepseek_v3", "lfm2"], indirect=True)
async def test_handed_over_and_migrated(
    reference: Reference,
    placement: Placement,  # noqa: F811
    streams: dict[str, RouterSession],
    tmp_path: Path,
) -> None:
    options = {"chunk_tokens": 64, **PATIENT}
    async with cluster(
        tmp_path, tmp_path / "checkpoint", prefill=2, decode=2, worker=options, router={"local_extend_tokens": 0}
    ) as running:
        if reference.model.config.model_type != "deepseek_v3":
            assert await check(running, reference) > 0
        await migrate(running, reference, placement, streams)


@pytest.mark.parametrize("reference", ["gemma3_text", "mistral", "lfm2"], indirect=True)
async def test_pools_that_are_too_small_for_all_that_was_ever_computed(reference: Reference, tmp_path: Path) -> None:
    """Memory of some 600 tokens' pages if all were kept, less than the prompts have together."""
    page_bytes = 2 * 16 * 2 * 16 * 4 * MODELS[reference.model.config.model_type]["num_hidden_layers"]
    worker = {"chunk_tokens": 64, "kv_memory_bytes": 38 * page_bytes}
    async with cluster(tmp_path, tmp_path / "checkpoint", prefill=0, decode=0, unified=1, worker=worker) as running:
        await check(running, reference)
