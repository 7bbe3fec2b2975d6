"""The comparison of engines: its bookkeeping on a peer made of a few lines, and Baton itself on a tiny model."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "engine"
MODULES = ("cases", "link", "models", "peers", "results", "roofline", "table")
FAKE_RUNNER = """
import sys
sys.path.insert(0, {folder!r})
from protocol import serve
class Fake:
    about = "fake 1"
    def __init__(self, options): self.kind = options["model"]
    def prefill(self, prompt):
        if len(prompt) == 13: raise ValueError("unlucky length")
        if len(prompt) == 14: sys.exit("that was the end")
        print("noise on stdout")
        return 0.5
    def open_decode(self, prompts, tokens): self.rows = len(prompts)
    def decode(self, steps): return steps * self.rows, 2.0
    def close_decode(self): self.rows = 0
    def mixed(self, prompts, output_tokens): return len(prompts) * output_tokens, 1.0
serve(Fake)
"""


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The modules of the benchmark, which lie in a folder of scripts, not in a package."""
    sys.path.insert(0, str(FOLDER))
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    yield found
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def link(parts: SimpleNamespace, tmp_path: Path) -> Iterator[Any]:
    script = tmp_path / "fake_runner.py"
    script.write_text(FAKE_RUNNER.format(folder=str(FOLDER / "runners")))
    options = {"model": "m", "cores": sorted(os.sched_getaffinity(0)), "seed": 0}
    made = parts.link.Link(Path(sys.executable), script, options, {})
    yield made
    made.close()


def _state(pid: int) -> str:
    """One letter, as in ps; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


def test_a_runner_is_asked_and_stopped_in_between(parts: SimpleNamespace, link: Any) -> None:
    assert link.about == "fake 1" and link.start_s > 0
    case = parts.cases.Case("prefill 10", {"do": "prefill", "tokens": 10})
    assert case.timed(link) == (20.0, 0.5)
    decode = next(case for case in parts.cases.cases(parts.cases.SMOKE) if case.open and case.open["batch"] == 4)
    with decode.opened(link):
        assert decode.timed(link) == (8.0, 2.0)
    while _state(link._process.pid) != "T":
        time.sleep(0.01)
    assert link.memory_bytes() > 1 << 20


def test_failures_of_a_runner(parts: SimpleNamespace, link: Any) -> None:
    with pytest.raises(parts.link.RunnerFailed, match="unlucky length") as failed:
        link.ask(10, do="prefill", tokens=13)
    assert not failed.value.fatal
    with pytest.raises(parts.link.RunnerFailed, match="that was the end") as failed:
        link.ask(10, do="prefill", tokens=14)
    assert failed.value.fatal
    link.close()
    with pytest.raises(parts.link.RunnerFailed, match="it was ended"):
        link.ask(10, do="prefill", tokens=1)


def test_a_stopped_runner_does_not_outlive_the_comparison(tmp_path: Path) -> None:
    script = tmp_path / "fake_runner.py"
    script.write_text(FAKE_RUNNER.format(folder=str(FOLDER / "runners")))
    options = {"model": "m", "cores": sorted(os.sched_getaffinity(0)), "seed": 0}
    code = (
        f"import os, sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        "from pathlib import Path; from link import Link\n"
        f"link = Link(Path(sys.executable), Path({str(script)!r}), {options}, {{}})\n"
        "print(link._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    while _state(int(done.stdout)) not in "Z":
        time.sleep(0.01)


def test_results_survive_and_failed_rows_are_tried_again(parts: SimpleNamespace, tmp_path: Path) -> None:
    results = parts.results.Results(tmp_path)
    results.add("m", "baton", "prefill 128", values=[3.0, 1.0, 2.0])
    results.add("m", "vllm", "prefill 128", error="no wheel")
    results.note_machine({"read_bytes_per_s": 2.0, "flops_per_s": 1.0})
    results.note_machine({"read_bytes_per_s": 1.0, "flops_per_s": 5.0})
    again = parts.results.Results(tmp_path)
    assert again.has("m", "baton", "prefill 128") and not again.has("m", "vllm", "prefill 128")
    assert again.get("m", "baton", "prefill 128").median == 2.0
    assert again.machine() == {"read_bytes_per_s": 2.0, "flops_per_s": 5.0}
    again.forget()
    assert not parts.results.Results(tmp_path).has("m", "baton", "prefill 128")


def test_table(parts: SimpleNamespace, tmp_path: Path) -> None:
    model = parts.models.BY_NAME["llama-100m"]
    results = parts.results.Results(tmp_path)
    machine = {"cpu": "a cpu", "cores": 2, "commit": "abc", "load_average": 0.1}
    results.note_machine({**machine, "read_bytes_per_s": 1e10, "flops_per_s": 2e11})
    results.add(model.name, "baton", "prefill 128", values=[600.0] * 5)
    results.add(model.name, "vllm", "prefill 128", values=[400.0, 500.0, 300.0])
    results.add(model.name, "llama-cpp", "prefill 128", error="no compiler")
    results.add(model.name, "vllm", "start", value=80.0, about="vllm 1", load_s=70.0)
    text = parts.table.markdown(results, [model], parts.cases.cases(parts.cases.FULL))
    row = next(line for line in text.splitlines() if line.startswith("| prefill 128 "))
    assert [cell.strip() for cell in row.split("|")[2:7]] == ["600.0", "400.0 (3)", "-", "cannot", "1.50"]
    assert "- llama.cpp, prefill 128: no compiler" in text and "vllm 1; loaded in 70.0 s" in text


def test_roofline(parts: SimpleNamespace) -> None:
    model = parts.models.BY_NAME["llama-100m"]
    assert 95e6 < model.weights < 105e6
    machine = parts.roofline.Machine(read_bytes_per_s=1e10, flops_per_s=1e15)
    alone = parts.roofline.decode_s(machine, model, 1, 128, shared=False)
    assert alone == pytest.approx((2 * model.weights + 128 * model.kv_token_bytes) / 1e10)
    shared = parts.roofline.decode_s(machine, model, 8, 2048, shared=True)
    assert shared < parts.roofline.decode_s(machine, model, 8, 2048, shared=False)


def test_requirements_of_a_wheel(parts: SimpleNamespace, tmp_path: Path) -> None:
    import zipfile

    lines = [
        "numpy", "torch==2.13.0+cpu; platform_machine == \"x86_64\"", "torchaudio", "pandas; extra == \"bench\"",
        "six>=1.16.0; python_version > \"3.11\"", "xgrammar==0.2; platform_machine == \"x86_64\"",
        "protobuf==7; platform_machine == \"s390x\"", "protobuf>=5; platform_machine != \"s390x\"",
    ]  # fmt: skip
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x-1.dist-info/METADATA", "\n".join(f"Requires-Dist: {line}" for line in lines))
    assert parts.peers.requirements(wheel, (3, 11)) == ["numpy", "xgrammar==0.2", "protobuf>=5"]
    assert "six>=1.16.0" in parts.peers.requirements(wheel, (3, 12))


def test_smoke_run_of_baton_alone(tmp_path: Path) -> None:
    command = [
        sys.executable, str(FOLDER / "compare.py"), "--smoke", "--engines=baton", "--threads=1", f"--folder={tmp_path}",
        f"--out={tmp_path / 'out'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| prefill 64 |" in done.stdout and "cannot" not in done.stdout
    lines = (tmp_path / "out" / "smoke" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["row"] for row in rows} >= {"start", "memory", "decode 4 at 600 shared"}
    assert all("error" not in row for row in rows)
