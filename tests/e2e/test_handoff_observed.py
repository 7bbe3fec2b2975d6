"""The KV cache really crosses: bytes are counted, and the first arrive while the prompt is still being computed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_process import MODEL, cluster

from baton.client import GenerateRequest, TokensEvent
from baton.core.sampling import SamplingParams
from baton.decode.desk import FetchDesk
from baton.engine.batch import StepBatch
from baton.engine.runner import TorchModelRunner
from baton.kv.local import Fetched
from baton.runtime import metrics
from baton.testing.checkpoints import make_checkpoint

LAYERS, KV_HEADS, HEAD_DIM, PAGE = 4, 2, 16, 16
PAGE_BYTES = 2 * PAGE * KV_HEADS * HEAD_DIM * 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("ckpt") / "llama", "llama", layers=LAYERS, hidden=64, heads=4, kv_heads=KV_HEADS,
        max_position=4096,
    )  # fmt: skip


@pytest.fixture
def handoffs(monkeypatch) -> list[Fetched]:
    """Every verified handoff that a decode worker of this process was told of."""
    seen: list[Fetched] = []
    original = FetchDesk.on_agent_message

    def spy(self: FetchDesk, message: object) -> None:
        if isinstance(message, Fetched):
            seen.append(message)
        original(self, message)

    monkeypatch.setattr(FetchDesk, "on_agent_message", spy)
    return seen


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 300) for _ in range(length)]


@contextmanager
def last_chunk_waits_for_the_first_bytes(monkeypatch, last_position: int) -> Iterator[None]:
    """Prefill computes its last chunk only when bytes of an earlier one have arrived: if nothing is handed over while
    the prompt is computed, this fails; how fast the machine is, does not matter."""
    original = TorchModelRunner.forward
    before = bytes_read()

    def forward(self: TorchModelRunner, batch: StepBatch, on_layer: Callable[[int], None] | None = None):
        if len(batch.token_ids) > 1 and int(batch.positions[-1]) == last_position:
            deadline = time.monotonic() + 20
            while bytes_read() == before:
                assert time.monotonic() < deadline, "no page arrived before the last chunk"
                time.sleep(0.001)
        return original(self, batch, on_layer)

    with monkeypatch.context() as patch:
        patch.setattr(TorchModelRunner, "forward", forward)
        yield


def bytes_read() -> float:
    value = metrics.REGISTRY.get_sample_value("baton_kv_agent_read_bytes_total")
    assert value is not None
    return value


@pytest.mark.parametrize("transport", ["ucx", "tcp"])
async def test_bytes_and_overlap(checkpoint, tmp_path, handoffs, transport, monkeypatch):
    ids = prompt(1500, seed=1)
    pages = -(-len(ids) // PAGE)
    async with cluster(tmp_path, checkpoint, transport=transport, worker={"chunk_tokens": 256}) as running:
        with last_chunk_waits_for_the_first_bytes(monkeypatch, len(ids) - 1):
            first, end = await running.tokens(ids, 4)
        assert end.usage.handoff_bytes == LAYERS * pages * PAGE_BYTES
        (handoff,) = handoffs
        assert handoff.bytes_read == LAYERS * pages * PAGE_BYTES
        assert handoff.first_arrival_at < handoff.computed_at < handoff.done_at

        again, end = await running.tokens(ids, 4)
        assert again == first
        assert end.usage.handoff_bytes <= LAYERS * PAGE_BYTES  # at most the last, partial page
        assert end.usage.cached_tokens >= len(ids) - PAGE

        longer = ids + first + prompt(500, seed=2)
        _, end = await running.tokens(longer, 4)
        delta = -(-len(longer) // PAGE) - (len(ids) + len(first) - 1) // PAGE
        assert 0 < end.usage.handoff_bytes <= LAYERS * delta * PAGE_BYTES
        await running.quiet()


async def test_cancel_frees_pages_on_both_sides(checkpoint, tmp_path):
    params = SamplingParams(temperature=0.0, max_tokens=1000, ignore_eos=True)
    async with cluster(tmp_path, checkpoint, worker={"chunk_tokens": 64}) as running:
        before_first = running.client.generate(
            GenerateRequest(model=MODEL, prompt_token_ids=prompt(3000, seed=3), sampling=params)
        )
        task = asyncio.ensure_future(anext(aiter(before_first)))
        await asyncio.sleep(0.05)
        task.cancel()
        mid_stream = running.client.generate(
            GenerateRequest(model=MODEL, prompt_token_ids=prompt(100, seed=4), sampling=params)
        )
        async for event in mid_stream:
            assert isinstance(event, TokensEvent)
            break
        await mid_stream.aclose()
        await running.quiet()
