"""Compiling the kernels: once, by one process of many; and what happens where it cannot be done."""

from __future__ import annotations

import multiprocessing
import shutil
import stat

import pytest
import torch
from structlog.testing import capture_logs

from baton.engine.cpu import build as building
from baton.engine.cpu import library
from baton.engine.cpu.build import COMPILERS, VARIANTS, BuildError, build, runnable_variants
from baton.engine.cpu.library import open_kernels
from baton.engine.runner import TorchModelRunner
from baton.testing.checkpoints import make_checkpoint

torch.set_num_threads(1)
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    """A compiler that copies a note to its output and counts its runs; `fail` makes it fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "g++"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo fake && exit 0\n'
        f'[ -e "{tmp_path}/fail" ] && echo "x.h:1: error: no" >&2 && exit 1\n'
        f'echo run >> "{tmp_path}/runs"\nfor last; do :; done\necho library > "$last"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


def runs(folder) -> int:
    return len((folder / "runs").read_text().splitlines()) if (folder / "runs").exists() else 0


def test_compiles_once_and_again_for_other_sources(fake_compiler, tmp_path, monkeypatch) -> None:
    first = build(tmp_path / "cache", "plain")
    assert first.read_text() == "library\n"
    assert build(tmp_path / "cache", "plain") == first
    assert runs(fake_compiler) == 1
    assert build(tmp_path / "cache", "avx2") != first
    shutil.copytree(building.SOURCE, tmp_path / "source")
    with (tmp_path / "source" / "simd.h").open("a") as file:
        file.write("// more\n")
    monkeypatch.setattr(building, "SOURCE", tmp_path / "source")
    assert build(tmp_path / "cache", "plain") != first
    assert runs(fake_compiler) == 3


def test_many_processes_compile_once(fake_compiler, tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=build, args=(tmp_path / "cache", "plain")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert runs(fake_compiler) == 1
    assert [file.suffix for file in sorted((tmp_path / "cache").iterdir())] == [".lock", ".so"]


def test_a_failing_compiler_is_reported_and_leaves_nothing(fake_compiler, tmp_path) -> None:
    (fake_compiler / "fail").touch()
    with pytest.raises(BuildError, match=r"failed with status 1: x\.h:1: error: no"):
        build(tmp_path / "cache", "plain")
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_no_compiler(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler was found"):
        build(tmp_path / "cache", "plain")


def test_a_cache_that_cannot_be_written(fake_compiler, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="cannot be kept in"):
        build(tmp_path / "file" / "cache", "plain")


@needs_compiler
def test_a_damaged_library_is_compiled_again(tmp_path) -> None:
    build(tmp_path, "plain").write_bytes(b"not a library")
    assert open_kernels(tmp_path, "plain").path.stat().st_size > 1000


def test_a_library_that_never_loads(fake_compiler, tmp_path) -> None:
    with pytest.raises(BuildError, match="cannot be loaded"):
        open_kernels(tmp_path / "cache", "plain")
    assert runs(fake_compiler) == 2


def test_variants_follow_the_processor(monkeypatch) -> None:
    assert runnable_variants()[-1] == "plain"
    for name, needed in VARIANTS.items():
        monkeypatch.setattr(building, "processor_flags", lambda needed=needed: frozenset(needed))
        assert building.best_variant() == name
    monkeypatch.setattr(building, "processor_flags", lambda: frozenset(("avx512f", "fma")))
    assert building.best_variant() == "plain"


def test_the_model_runs_without_a_compiler(monkeypatch, tmp_path) -> None:
    """One warning, and plain torch operations."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(library, "kernels", library.kernels.__wrapped__)
    with capture_logs() as logs:
        assert library.kernels() is None
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "no C++ compiler was found" in logs[0]["reason"]
    monkeypatch.setattr("baton.engine.runner.kernels", lambda: None)
    runner = TorchModelRunner.load(make_checkpoint(tmp_path / "model"))
    assert type(runner._attention).__name__ == "TorchAttention"
