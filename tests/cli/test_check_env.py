from __future__ import annotations

import json
import subprocess

import pytest

from baton.cli import check_env, main, probes, same_host_probe
from baton.cli.probes import Check

FITTING = [
    Check("Python", "ok", "3.11", required=True),
    Check("GPU", "missing", "none found", "optional: a GPU"),
    Check("memory", "warn", "little", "end other programs"),
]
LACKING = [*FITTING, Check("torch", "missing", "not installed", "pip install torch", required=True)]


def test_text_tells_what_is_wrong_and_how_to_mend_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_env, "run_checks", lambda purpose: LACKING)
    assert main.main(["check-env"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "Python", "3.11"]
    assert any(line.startswith("missing  torch") for line in lines)
    assert any(line.strip() == "-> pip install torch" for line in lines)
    assert lines[-1] == "baton up cannot run here; missing: torch"


def test_optional_things_may_be_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_env, "run_checks", lambda purpose: FITTING)
    assert main.main(["check-env", "--for", "router"]) == 0
    assert capsys.readouterr().out.endswith("baton router can run here\n")


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_env, "run_checks", lambda purpose: LACKING)
    assert main.main(["check-env", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fit"] is False and found["for"] == "up"
    assert found["checks"][-1] == {
        "name": "torch", "status": "missing", "detail": "not installed", "mend": "pip install torch", "required": True,
    }  # fmt: skip


def test_real_checks_of_this_machine() -> None:
    checks = {check.name: check for check in check_env.run_checks("gateway")}
    assert checks["Python"].status == "ok"
    assert checks["packages"].status == "ok" and "grpcio " in checks["packages"].detail
    assert checks["packages: gateway"].required and not checks["packages: worker"].required
    assert "cores usable" in checks["CPU"].detail
    assert "GiB available" in checks["memory"].detail
    assert all(check.mend for check in checks.values() if check.status != "ok")
    if checks["UCX (NIXL)"].status == "ok":
        assert "UCX 1." in checks["UCX (NIXL)"].detail and "tcp/lo" in checks["UCX (NIXL)"].detail


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        probes.metadata, "requires", lambda name: ["grpcio>=1", "no-such-thing>=2", 'torch>=2; extra == "worker"']
    )
    check = probes.packages("", required=True)
    assert check.status == "missing" and check.detail == "not installed: no-such-thing"
    assert check.mend == "pip install 'baton-serving'"


def test_programs_that_hang_crash_or_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("x", 1)

    assert probes._run(["/no/such/program"])[0] == -1
    assert probes._run(["sh", "-c", "echo bad >&2; exit 3"]) == (3, "bad\n")
    monkeypatch.setattr(probes.subprocess, "run", hang)
    check = probes.ucx()
    assert check.status == "missing" and "no answer within" in check.detail and not check.required


def test_pages_on_one_host_are_tried_not_guessed(monkeypatch):
    assert probes.same_host_pages().status == "ok"
    monkeypatch.setattr(same_host_probe, "failure", lambda: "no such thing here")
    check = probes.same_host_pages()
    assert check.status == "warn" and "no such thing here" in check.detail
