"""The programs that profile a step and measure quantization: their sums are right, and they run."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from baton.testing.checkpoints import make_checkpoint

FOLDER = Path(__file__).parents[2] / "benchmarks" / "engine"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_each_second_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    import step_profile

    seconds = itertools.count()  # each look at the clock is a second after the one before
    monkeypatch.setattr(step_profile.time, "perf_counter", lambda: next(seconds))
    watch = step_profile.Stopwatch()
    inner = watch.wrap(lambda _x, _y: "inner", lambda: None)

    def body() -> None:
        inner()
        inner()

    watch.wrap(lambda _x, _y: "outer", body)()
    assert watch.steps == [{"inner": [1, 1], "outer": [3]}]  # 5 from begin to end, less 2 within


def test_a_step_is_profiled_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import step_profile

    monkeypatch.setattr(step_profile, "read_gb_per_s", lambda repetitions: 10.0)
    monkeypatch.setattr(step_profile, "gemm_gflop_per_s", lambda dtype, repetitions: 100.0)
    model = make_checkpoint(tmp_path / "model", layers=2, hidden=64, dtype="bfloat16", max_position=256)
    file = tmp_path / "profile.json"
    monkeypatch.setattr(
        sys, "argv", ["step_profile.py", f"--model={model}", "--batch=3", "--context=20", "--steps=3", f"--json={file}"]
    )
    step_profile.main()
    printed = capsys.readouterr().out
    assert "| attention | 2 |" in printed
    assert "| norms | 5 |" in printed
    assert printed.count("| linear ") >= 4
    assert file.exists()


def test_fewer_bits_are_less_exact(tmp_path: Path) -> None:
    import quantization

    model = make_checkpoint(tmp_path / "model", layers=2, hidden=64, intermediate=128, max_position=256)
    found = quantization.exactness(str(model), count=2, tokens=24)
    assert list(found) == ["float32", "none", "int8", "int4"]
    assert found["float32"]["kl_nats"] == 0 and found["float32"]["same_top_1"] == 1
    assert found["none"]["kl_nats"] < found["int8"]["kl_nats"] < found["int4"]["kl_nats"]
