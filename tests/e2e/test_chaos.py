"""The chaos harness: a short run with a fixed seed against a real system; its plan and its judge by themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.chaos.judge import Judge, Struck  # noqa: E402
from tools.chaos.load import Answer, Question, questions  # noqa: E402
from tools.chaos.plan import Kind, PlannedFault, make_plan  # noqa: E402

SERVICES = ["router", "gateway", "redis", "prefill-0", "prefill-0-agent", "decode-0", "decode-0-agent"]
AGENTS = [name for name in SERVICES if name.endswith("-agent")]
QUESTION = Question(3, [1, 2, 3], 5, 0.0)


@pytest.mark.timeout(600)  # 70 s where nobody else computes
def test_half_a_minute_of_chaos(tmp_path):
    """About fifteen faults: every answer right, nothing kept, everybody back."""
    command = [
        sys.executable, "-m", "tools.chaos", "--seed=20", "--minutes=0.4", "--gap=1.5", "--clients=4",
        f"--report={tmp_path / 'report.md'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"] and report["faults"] >= 4 and report["answers"] >= 4, report
    assert report["wrong_answers"] == report["lost_tokens"] == report["repeated_tokens"] == 0
    assert "| wrong answers | 0 |" in (tmp_path / "report.md").read_text()


def test_a_plan_is_its_seed():
    def plan(seed: int) -> list[PlannedFault]:
        return make_plan(seed, 600.0, SERVICES, AGENTS, list(Kind), 1.5)

    assert plan(7) == plan(7) != plan(8)
    assert [q.prompt for q in questions(7)] == [q.prompt for q in questions(7)] != [q.prompt for q in questions(8)]
    faults = plan(7)
    assert 300 < len(faults) < 500 and {fault.kind for fault in faults} == set(Kind)
    assert all(fault.at_s < 600 and (fault.for_s > 0) == fault.kind.lasts for fault in faults)
    assert all(fault.target in AGENTS for fault in faults if fault.kind.by_agent)
    assert {fault.target for fault in faults if fault.kind is Kind.KILL} == set(SERVICES)


def judge() -> Judge:
    return Judge({(3, "http"): "right", (3, "grpc"): [7, 8, 9, 7, 8]})


def whole(content: str | list[int], tokens: int, by: str = "http") -> Answer:
    return Answer(QUESTION, by, 100.0, content, tokens, [101.0, 101.5, 104.0])


@pytest.mark.parametrize(
    ("answer", "lost", "repeated"),
    [
        (whole("wrong", 5), 0, 0),
        (whole("right", 4), 1, 0),
        (whole([7, 8, 9, 7], 4, "grpc"), 1, 0),
        (whole([7, 8, 8, 9, 7, 8], 6, "grpc"), 0, 1),
        (whole([7, 8, 9, 8, 7], 5, "grpc"), 0, 0),
    ],
)
def test_every_wrong_answer_is_a_violation(answer, lost, repeated):
    found = judge()
    found.keep(whole("right", 5))
    assert (found.right, found.violations) == (1, [])
    found.keep(answer)
    assert (found.wrong, found.lost_tokens, found.extra_tokens, len(found.violations)) == (1, lost, repeated, 1)


def test_only_a_gateway_that_was_struck_may_be_lost():
    lost = Answer(QUESTION, "http", 100.0, error="ConnectError", lost_gateway=True)
    refused = Answer(QUESTION, "http", 100.0, error="status 500")
    blameless, excused = judge(), judge()
    blameless.struck = [Struck(PlannedFault(1.0, Kind.KILL, "decode-0"), at=99.0)]
    excused.struck = [Struck(PlannedFault(1.0, Kind.KILL, "gateway"), at=99.0)]
    for found in (blameless, excused):
        found.keep(lost)
        found.keep(refused)
    assert (blameless.broken, len(blameless.violations)) == (2, 2)
    assert (excused.broken, excused.asked_again, len(excused.violations)) == (1, 1, 1)


def test_a_pause_is_a_silence_while_the_fault_lasts():
    found = judge()
    found.keep(whole("right", 5))
    early = Struck(PlannedFault(0.0, Kind.STOP, "router", 0.2), at=101.2, ended_at=101.4)
    late = Struck(PlannedFault(0.0, Kind.KILL, "router"), at=102.0, ended_at=103.0, back_s=1.0)
    after = Struck(PlannedFault(0.0, Kind.KILL, "router"), at=105.0, ended_at=106.0)
    assert [found.pause_s(item) for item in (early, late, after)] == [0.5, 2.5, 0.0]


def test_memory_that_grows_is_a_violation():
    found = judge()
    found.check_memory("router", 40.0, 90.0, 100.0)
    assert not found.violations
    found.check_memory("router", 40.0, 101.0, 100.0)
    assert len(found.violations) == 1
