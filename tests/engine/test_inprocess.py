"""The engine in one's own process: results, batches, streams, cancellation, errors, shutdown."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from baton.core.errors import CheckpointError, ConfigError, InvalidRequest, PromptTooLong, Unavailable
from baton.core.sampling import SamplingParams
from baton.engine import Engine
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)

GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_checkpoint(tmp_path_factory.mktemp("inprocess"), "llama", seed=2))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, dtype="float32", kv_memory_bytes=16 << 20) as engine:
        yield engine


def test_text_and_token_ids_one_and_many(engine: Engine) -> None:
    one = engine.generate("the first runner hands the baton over", GREEDY)
    assert one["meta_info"]["finish_reason"] == {"type": "length", "length": 12}
    assert one["meta_info"]["completion_tokens"] == len(one["output_ids"]) == 12
    assert one["meta_info"]["prompt_tokens"] > 1
    assert isinstance(one["text"], str)
    prompts = ["the first runner hands the baton over", [5, 6, 7], "another"]
    many = engine.generate(prompts, [GREEDY, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), GREEDY])
    assert many[0]["output_ids"] == one["output_ids"]
    assert len(many[1]["output_ids"]) == 3
    assert many[1]["meta_info"]["prompt_tokens"] == 3


def test_a_cached_prefix_is_reported(engine: Engine) -> None:
    prompt = list(range(10, 60))
    first = engine.generate(prompt, GREEDY)
    again = engine.generate(prompt, GREEDY)
    assert again["meta_info"]["cached_tokens"] == 48
    assert again["output_ids"] == first["output_ids"]


def test_stop_tokens_end_and_are_not_in_the_text(engine: Engine) -> None:
    free = engine.generate([5, 6, 7], GREEDY)["output_ids"]
    result = engine.generate([5, 6, 7], {**GREEDY, "stop_token_ids": [free[4]], "top_logprobs": 2})
    cut = free.index(free[4]) + 1
    assert result["output_ids"] == free[:cut]
    assert result["meta_info"]["finish_reason"] == {"type": "stop", "matched": free[4]}
    assert [token for _, token in result["meta_info"]["output_token_logprobs"]] == free[:cut]
    assert all(len(top) == 2 for top in result["meta_info"]["output_top_logprobs"])


def test_a_stream_grows_to_the_same_result_and_may_be_left(engine: Engine) -> None:
    whole = engine.generate([9, 8, 7], GREEDY)
    chunks = list(engine.stream([9, 8, 7], GREEDY))
    assert [len(chunk["output_ids"]) for chunk in chunks] == list(range(1, 13))
    assert chunks[-1]["output_ids"] == whole["output_ids"]
    assert chunks[-1]["text"] == whole["text"]
    assert chunks[0]["meta_info"]["finish_reason"] is None
    left = engine.stream([9, 8, 7], {**GREEDY, "max_new_tokens": 400})
    next(left)
    left.close()
    assert engine.generate([9, 8, 7], GREEDY)["output_ids"] == whole["output_ids"]


def test_async_many_at_once_streams_and_cancellation(engine: Engine) -> None:
    async def run() -> None:
        expected = engine.generate([[i, 6, 7] for i in range(10, 14)], GREEDY)
        found = await asyncio.gather(*(engine.async_generate([i, 6, 7], GREEDY) for i in range(10, 14)))
        assert [one["output_ids"] for one in found] == [one["output_ids"] for one in expected]
        task = asyncio.create_task(engine.async_generate([3, 4, 5], {**GREEDY, "max_new_tokens": 400}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        last = [chunk async for chunk in engine.async_stream([10, 6, 7], GREEDY)][-1]
        assert last["output_ids"] == expected[0]["output_ids"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("prompt", "sampling", "error", "message"),
    [
        ([5, 10**6], GREEDY, InvalidRequest, "not in the vocabulary"),
        ([5] * 100_000, GREEDY, PromptTooLong, "the limit is"),
        ([5], {"max_tokns": 3}, InvalidRequest, "has no 'max_tokns'"),
        ([5], {"temperature": -1}, InvalidRequest, "temperature"),
        ([[5], [6]], [GREEDY], InvalidRequest, "1 sampling parameters for 2 prompts"),
        ([5], [GREEDY], InvalidRequest, "one prompt takes one set"),
        ([], GREEDY, InvalidRequest, "the prompt is empty"),
    ],
)
def test_bad_input_is_named(engine: Engine, prompt: list, sampling: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        engine.generate(prompt, sampling)
    assert engine.generate([5, 6], GREEDY)["output_ids"]


def test_shutdown_ends_and_refuses(folder: Path) -> None:
    engine = Engine(folder, dtype="float32", kv_memory_bytes=16 << 20)
    engine.shutdown()
    engine.shutdown()
    with pytest.raises(Unavailable, match="shut down"):
        engine.generate([5], GREEDY)


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Engine(tmp_path)
    with pytest.raises(ConfigError, match="kv_memory_bytes = 10"):
        Engine(folder, kv_memory_bytes=10)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, baton.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_of_eight_bits_say_nearly_the_same(engine: Engine, folder: Path) -> None:
    def likeliest(one: Engine) -> float:
        told = one.generate([5, 6, 7], {**GREEDY, "max_new_tokens": 1, "top_logprobs": 1})
        return told["meta_info"]["output_token_logprobs"][0][0]

    with Engine(folder, dtype="float32", quantization="int8", kv_memory_bytes=4 << 20) as quantized:
        assert 0 < abs(likeliest(quantized) - likeliest(engine)) < 0.1
    with pytest.raises(ConfigError, match="quantization is 'int2'; it must be none, int8, int4"):
        Engine(folder, quantization="int2")
