"""`baton bench engine` on a tiny checkpoint: the figures exist and say what they should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.cli import main
from baton.core.errors import ConfigError
from baton.testing.checkpoints import make_checkpoint
from baton.worker.bench import EngineBench
from baton.worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("bench") / "model", layers=1, hidden=32, max_position=512))


@pytest.fixture(scope="module")
def bench(checkpoint: str) -> Iterator[EngineBench]:
    made = EngineBench(WorkerSettings(model=checkpoint), pool_tokens=2048)
    yield made
    made.close()


def test_prefill_and_mixed_count_their_tokens(bench: EngineBench) -> None:
    assert bench.prefill(70).tokens == 70
    mixed = bench.mixed(5, 20, 7)
    assert mixed.output.tokens == 35 and len(mixed.ttft_s) == 5
    assert 0 < min(mixed.ttft_s) <= max(mixed.ttft_s) <= mixed.output.seconds


@pytest.mark.parametrize("shared", [False, True])
def test_decode_draws_what_it_was_asked_for(bench: EngineBench, shared: bool) -> None:
    bench.open_decode(3, 40, tokens=8, shared=shared)
    assert bench.decode(4).tokens == 12
    assert bench.decode(4).tokens == 12
    with pytest.raises(ConfigError, match="0 are left"):
        bench.decode(1)
    bench.close_decode()
    assert bench.prefill(16).tokens_per_s > 0


def test_rows_that_decode_before_the_others_have_prompts(checkpoint: str) -> None:
    bench = EngineBench(WorkerSettings(model=checkpoint, max_batch_tokens=300, max_running=16), pool_tokens=4096)
    bench.open_decode(16, 128, tokens=4)
    assert bench.decode(4).tokens == 64
    bench.close_decode()
    bench.close()


def test_a_model_that_runs_through_transformers(checkpoint: str) -> None:
    bench = EngineBench(WorkerSettings(model=checkpoint, model_backend="transformers"), pool_tokens=512)
    assert bench.prefill(40).tokens == 40
    bench.close()


def test_command(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "bench", "engine", f"--model={checkpoint}", "--prefill=16,32", "--batch=1,2", "--context=20", "--steps=2",
        "--mixed=2x8+3", "--repeats=2", f"--json={tmp_path / 'engine.json'}",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    out = capsys.readouterr().out
    assert "decode 2 at 20" in out and "mixed 2 x (8 in + 3 out)" in out and "MiB at most" in out
    found = json.loads((tmp_path / "engine.json").read_text())
    rows = found["summary"]["rows"]
    assert [row["case"] for row in rows][:2] == ["prefill 16", "prefill 32"] and len(rows) == 5
    assert all(len(row["tokens_per_s"]) == 2 and min(row["tokens_per_s"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model"),
        (["--model=x", "--batch=1,a"], "no list of positive numbers"),
        (["--model=x", "--mixed=3"], "not of the form"),
        (["--model=x", "--repeats=0"], "at least 1"),
        (["--model=/nonexistent"], "nonexistent"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "engine", *arguments]) == 2
    assert message in capsys.readouterr().err
