"""`baton bench` as a user types it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_openai import FakeServer, serving

from baton.cli import main


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server on a thread of its own, since the command has a loop of its own."""
    fake, ready, stop = FakeServer(cached=8), threading.Event(), threading.Event()

    async def run() -> None:
        async with serving(fake):
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait(10)
    yield fake
    stop.set()
    thread.join()


@pytest.mark.parametrize("command", [["bench"], ["bench", "serve"], ["bench", "engine"]])
def test_help_fits_a_screen(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([*command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: baton {' '.join(command)}")
    assert len(lines) <= 32 and max(map(len, lines)) <= 100, "\n".join(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["srve"], "did you mean"),
        (["serve", "--ratee", "3"], "--ratee"),
        (["serve", "--rate", "-1"], "--rate is -1.0; it must be more than 0"),
        (["serve", "--workload", "trace"], "go together"),
        (["serve", "--url", "localhost"], "must begin with http"),
        (["serve", "--url", "http://127.0.0.1:9"], "nobody answers"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_serve_writes_json_and_plot(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "bench", "serve", f"--url={server.url}", "--workload=shared-prefix", "--requests=10", "--rate=200", "--input=8",
        "--output=4", "--prefix=16", "--slo-ttft-ms=5000", "--api-key=geheim", f"--json={tmp_path / 'run.json'}",
        f"--plot={tmp_path / 'run.png'}",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    out = capsys.readouterr().out
    assert "10 of 10 requests answered" in out and "cached prompt tokens   33.3%" in out
    written = (tmp_path / "run.json").read_text()
    assert "geheim" not in written
    run = json.loads(written)
    assert run["settings"]["rate"] == 200 and run["summary"]["goodput"]["good"] == 10
    assert run["command"][:3] == ["baton", "bench", "serve"]
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_serve_replays_a_trace(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"input_length": 1000, "output_length": 64, "hash_ids": [5, 6]}
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps({"timestamp": 1000 * n, **line}) + "\n" for n in range(4)))
    arguments = [
        "bench", "serve", f"--url={server.url}", "--workload=trace", f"--trace={file}", "--block=32", "--speed=50",
        "--warmup=0",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    assert "4 of 4 requests" in capsys.readouterr().out
    first, *others = server.bodies
    assert len(first["prompt"]) == 62 and first["max_tokens"] == 4
    assert all(body["prompt"] == first["prompt"] for body in others)


def test_interrupt_reports_what_there_is(server: FakeServer) -> None:
    server.first_s = lambda n: 0.0 if n < 3 else 60.0
    code = "import sys; from baton.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["bench", "serve", f"--url={server.url}", "--requests=9", "--concurrency=1", "--warmup=0"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=-1, stderr=-1, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    while len(server.bodies) < 4 and process.poll() is None:
        threading.Event().wait(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130, error
    assert "3 of 9 requests answered" in out and "unfinished: 1" in out and "interrupted; so far:" in error
