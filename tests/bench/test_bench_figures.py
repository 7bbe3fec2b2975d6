"""Percentiles, tables, files and pictures, from outcomes made by hand."""

from __future__ import annotations

import builtins
import importlib
import json
from pathlib import Path

import pytest

from baton.cli.bench import plot
from baton.cli.bench.outcome import Log, Outcome
from baton.cli.bench.progress import describe
from baton.cli.bench.report import document, table, write_json
from baton.cli.bench.summary import Slo, distribution, summarize
from baton.core.errors import ConfigError


def answered(sent_s: float, first_s: float, gap_s: float, tokens: int, cached: int | None = None) -> Outcome:
    arrivals = [sent_s + first_s + gap_s * token for token in range(tokens)]
    return Outcome(sent_s, sent_s, arrivals_s=arrivals, end_s=arrivals[-1], prompt_tokens=100, cached_tokens=cached,
                   output_tokens=tokens)  # fmt: skip


def log_of(*outcomes: Outcome, duration_s: float = 10.0) -> Log:
    log = Log(planned=len(outcomes), ended_s=duration_s)
    for outcome in outcomes:
        log.add(outcome)
        log.pieces += len(outcome.arrivals_s)
    return log


def test_percentiles() -> None:
    found = distribution([value / 1e3 for value in range(1, 102)])
    assert found == pytest.approx({"mean": 51.0, "p50": 51.0, "p90": 91.0, "p95": 96.0, "p99": 100.0, "max": 101.0})
    assert distribution([]) is None


def test_figures_of_a_run() -> None:
    log = log_of(
        answered(0.0, 0.1, 0.01, 11, cached=80),
        answered(1.0, 0.3, 0.03, 11, cached=0),
        answered(2.0, 0.2, 0.00, 1),
        Outcome(0.0, 0.5, error="HTTP 429"),
    )
    summary = summarize(log, Slo(ttft_ms=250, itl_ms=20))
    latency = summary["latency_ms"]
    assert latency["ttft"]["p50"] == pytest.approx(200.0)
    assert latency["itl"]["p50"] == pytest.approx(20.0) and latency["itl"]["max"] == pytest.approx(30.0)
    assert latency["tpot"]["mean"] == pytest.approx(20.0)
    assert latency["e2e"]["max"] == pytest.approx(600.0)
    assert summary["throughput"]["output_tokens_per_s"] == pytest.approx(2.3)
    assert summary["cached_tokens_share"] == pytest.approx(0.4)
    assert summary["goodput"]["good"] == 2 and summary["goodput"]["requests_per_s"] == pytest.approx(0.2)
    assert summary["client"]["lag_ms"]["max"] == pytest.approx(500.0)
    text = table(summary)
    assert "3 of 4 requests answered" in text and "HTTP 429: 1" in text and "warning" in text
    assert "goodput                0.20 requests/s, 50.0% of those sent (TTFT <= 250 ms, TPOT <= 20 ms)" in text


def test_a_run_without_answers_has_a_table_too() -> None:
    text = table(summarize(log_of(Outcome(0.0, 0.0, error="timeout")), Slo()))
    assert "0 of 1 requests" in text and "timeout: 1" in text and "TTFT            -" in text


def test_the_document_says_where_it_comes_from(tmp_path: Path) -> None:
    log = log_of(answered(0.0, 0.1, 0.01, 3))
    content = document(summarize(log, Slo()), command=["baton", "bench"], settings={"seed": 1}, log=log)
    write_json(tmp_path / "sub" / "run.json", content)
    read = json.loads((tmp_path / "sub" / "run.json").read_text())
    assert read["hardware"]["cores"] >= 1 and read["command"] == ["baton", "bench"] and "commit" in read
    assert read["requests"][0]["ttft_ms"] == pytest.approx(100.0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_json(tmp_path / "file" / "run.json", content)


def test_plot(tmp_path: Path) -> None:
    log = log_of(answered(0.0, 0.1, 0.01, 30), answered(0.2, 0.2, 0.02, 30), Outcome(0.0, 0.0, error="timeout"))
    plot.write_plot(tmp_path / "run.png", log, "a run")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    plot.write_plot(tmp_path / "empty.png", log_of(), "nothing")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot.write_plot(tmp_path / "run.nonsense", log, "a run")


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=r"pip install 'baton-serving\[bench\]'"):
        plot.check_available()
    assert builtins.__import__("matplotlib")


def test_progress_line() -> None:
    log = log_of(answered(0.0, 0.1, 0.01, 30), Outcome(0.0, 0.0, error="timeout"))
    log.running = 3
    assert describe(log, 3.0) == f"[{'#' * 30}] 2/2, 3 running, 1 failed, 10 tok/s, 3 s"
