"""Pooling through everything real: worker processes' own `run`, router, gateway; small models."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import openai
import pytest
import torch
import torch.nn.functional as F
from in_process import MODEL, cluster, until

from baton.client import GenerateRequest, PoolingParams, SamplingParams, Task
from baton.core.errors import InvalidRequest, PromptTooLong
from baton.engine.api import StepOutput
from baton.testing.checkpoints import make_checkpoint
from baton.worker.loop import EngineLoop

torch.set_num_threads(1)
EMBED = PoolingParams(Task.EMBED)
PROMPT = list(range(10, 60))


@torch.inference_mode()
def embedding(folder: Path, tokens: list[int]) -> torch.Tensor:
    from transformers import AutoModel

    states = AutoModel.from_pretrained(folder, dtype=torch.float32)(torch.tensor([tokens])).last_hidden_state
    return F.normalize(states[0, -1], dim=0)


def asked(tokens: list[int], params: PoolingParams = EMBED) -> GenerateRequest:
    return GenerateRequest(model=MODEL, prompt_token_ids=tokens, pooling=params)


async def test_a_generating_model_on_prefill_and_decode_workers(tmp_path: Path) -> None:
    """Pooling runs on the prefill worker, whose cache generation has filled; generation is as ever."""
    checkpoint = make_checkpoint(tmp_path / "model", max_position=512)
    async with cluster(tmp_path, checkpoint, gateway=True) as system:
        await system.tokens(PROMPT, 4)
        answer = await system.client.pool(asked(PROMPT))
        torch.testing.assert_close(torch.tensor(answer.vector), embedding(checkpoint, PROMPT), atol=2e-5, rtol=2e-5)
        usage = answer.usage
        assert (usage.prefill_worker, usage.decode_worker) == ("prefill-0", "prefill-0")
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (50, 48, 0)
        [model] = await system.client.models()
        assert model.tasks == {Task.GENERATE, Task.EMBED, Task.SCORE}
        with pytest.raises(InvalidRequest, match="does not do task classify; it does: embed, generate, score"):
            await system.client.pool(asked(PROMPT, PoolingParams(Task.CLASSIFY)))
        longest = [7] * 512
        assert len((await system.client.pool(asked(longest))).vector) == 64
        with pytest.raises(PromptTooLong, match="513 tokens"):
            await system.client.pool(asked([*longest, 7]))
        async with openai.AsyncOpenAI(base_url=f"{system.gateway_url}/v1", api_key="any", max_retries=0) as client:
            many = await client.embeddings.create(model=MODEL, input=[PROMPT, PROMPT[:9], longest], dimensions=16)
        expected = F.normalize(embedding(checkpoint, PROMPT[:9])[:16], dim=0)
        torch.testing.assert_close(torch.tensor(many.data[1].embedding), expected, atol=2e-5, rtol=2e-5)
        await system.quiet()


async def test_cancelled_requests_free_their_pages(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", max_position=4096)
    async with cluster(
        tmp_path, checkpoint, prefill=0, decode=0, unified=1, worker={"max_batch_tokens": 128}
    ) as system:
        tasks = [asyncio.create_task(system.client.pool(asked([seed] * 2000))) for seed in range(8, 12)]

        async def running() -> bool:
            return any(worker.running for worker in (await system.client.fleet()).workers)

        await until(running, "something runs")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await system.quiet()


class Gate:
    """While it is shut, what engines have computed stays in their workers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: list[tuple[EngineLoop, StepOutput]] = []
        self._shut = True
        self._hand_over = EngineLoop._hand_over
        monkeypatch.setattr(EngineLoop, "_hand_over", lambda loop, output: self._pass(loop, output))

    def _pass(self, loop: EngineLoop, output: StepOutput) -> None:
        if self._shut and output.rows:
            self.held.append((loop, StepOutput(rows=output.rows)))
            output.rows = []
        self._hand_over(loop, output)

    @property
    def answers(self) -> int:
        return sum(len(output.rows) for _, output in self.held)

    def open(self) -> None:
        self._shut = False
        for loop, output in self.held:
            if loop._thread.is_alive():
                self._hand_over(loop, output)


async def test_a_workers_end_moves_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers are computed and none is out when one of two workers ends."""
    gate = Gate(monkeypatch)
    checkpoint = make_checkpoint(tmp_path / "model", max_position=4096)
    async with cluster(tmp_path, checkpoint, prefill=0, decode=0, unified=2, worker={"drain_s": 0}) as system:
        prompts = [[seed] * 200 for seed in range(8, 14)]
        tasks = [asyncio.create_task(system.client.pool(asked(prompt))) for prompt in prompts]

        async def all_are_computed() -> bool:
            return gate.answers == len(prompts)

        await until(all_are_computed, "all answers are computed")
        assert len({loop for loop, _ in gate.held}) == 2
        system.tasks["unified-0"].cancel()
        await asyncio.gather(system.tasks["unified-0"], return_exceptions=True)
        gate.open()
        answers = await asyncio.gather(*tasks)
        moved = [answer for answer in answers if answer.usage.attempts > 1]
        assert moved and {answer.usage.prefill_worker for answer in moved} == {"unified-1"}
        for prompt, answer in zip(prompts, answers, strict=True):
            torch.testing.assert_close(torch.tensor(answer.vector), embedding(checkpoint, prompt), atol=1e-4, rtol=1e-4)


async def test_an_encoder_is_served_beside_nothing_else(tmp_path: Path) -> None:
    """A cross-encoder over the gateway: pairs with their segments, and what it cannot do."""
    from transformers import BertConfig, BertForSequenceClassification

    checkpoint = make_checkpoint(tmp_path / "model")  # for its tokenizer
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (checkpoint / name).unlink()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_labels=1,
                        num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(checkpoint)
    options = {"prefill": 0, "decode": 0, "unified": 1, "gateway": True}
    async with cluster(tmp_path, checkpoint, **options) as system:
        async with httpx.AsyncClient(base_url=system.gateway_url, timeout=30) as http:
            body = {"model": MODEL, "query": "the sea", "documents": ["wind and ships", "a short story"]}
            answer = (await http.post("/v1/rerank", json=body)).json()
            refused = await http.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
            embed = await http.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        pairs = tokenizer(["the sea"] * 2, body["documents"], return_token_type_ids=True)
        for result in answer["results"]:
            ids, types = (torch.tensor([pairs[name][result["index"]]]) for name in ("input_ids", "token_type_ids"))
            with torch.inference_mode():
                expected = model(ids, token_type_ids=types).logits.sigmoid().item()
            assert result["relevance_score"] == pytest.approx(expected, abs=1e-5)
        for response, task in ((refused, "generate"), (embed, "embed")):
            assert response.status_code == 400 and f"does not do task {task}" in response.json()["error"]["message"]
        with pytest.raises(InvalidRequest, match="does not do task generate; it does: classify"):
            await anext(system.client.generate(GenerateRequest(MODEL, [7], SamplingParams())))
