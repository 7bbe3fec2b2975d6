"""Compiles the C++ kernels for this machine's processor on first use, and keeps the library in the cache folder.

Runs while a worker loads its model. The library's name is a digest of the sources, the compiler and its flags, so
that whatever changes them is compiled anew and machines may share a cache folder. Any number of processes may ask at
once: one compiles, the others wait for it; one that dies meanwhile leaves no half of a library in place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

SOURCE = Path(__file__).parent / "source"
COMPILERS = ("g++", "c++", "clang++")
TIMEOUT_S = 300.0
_FLAGS = (
    "-std=c++17 -O3 -fPIC -shared -pthread -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math"
).split()
# What the kernels use of each instruction set. AVX-512 stands here as processors since 2017 have it (F, BW, DQ, VL).
_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
VARIANTS = {"avx512_bf16": (*_AVX512, "avx512vbmi", "avx512_bf16"), "avx512": _AVX512, "avx2": _AVX2, "plain": ()}


class BuildError(Exception):
    """The kernels cannot be compiled here. The message says why, and what would help."""


def processor_flags() -> frozenset[str]:
    """Instruction sets of this processor as Linux names them; none elsewhere than on Linux and x86."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def best_variant() -> str:
    """The richest of VARIANTS that this processor can run."""
    return runnable_variants()[0]


def runnable_variants() -> list[str]:
    """Those of VARIANTS that this processor can run, the best first."""
    has = processor_flags()
    return [name for name, needed in VARIANTS.items() if has.issuperset(needed)]


def build(cache: Path, variant: str) -> Path:
    """The compiled library of `variant` in the folder `cache`, which is made if need be. Blocks while compiling.

    Raises BuildError when there is no compiler, when it fails, or when `cache` cannot be written.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler was found ({', '.join(COMPILERS)}); install g++ for several times the speed")
    flags = [*_FLAGS, *_machine_flags(variant)]
    target = cache / f"kernels-{variant}-{_digest(compiler, flags)}.so"
    if target.is_file():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.is_file():
                _compile(compiler, flags, target)
    except OSError as error:
        raise BuildError(f"the kernels cannot be kept in {cache}: {error}") from None
    return target


def _machine_flags(variant: str) -> list[str]:
    if platform.machine() in ("aarch64", "arm64"):
        return ["-mcpu=native"]
    flags = [f"-m{name.replace('_', '')}" for name in VARIANTS[variant]]
    return [*flags, "-mprefer-vector-width=512"] if "avx512f" in VARIANTS[variant] else flags


def _digest(compiler: str, flags: Sequence[str]) -> str:
    version = _run([compiler, "--version"])
    digest = hashlib.sha256("\0".join([version, *flags, platform.machine()]).encode())
    if platform.machine() in ("aarch64", "arm64"):
        digest.update(platform.processor().encode())
    for file in sorted(SOURCE.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, flags: Sequence[str], target: Path) -> None:
    log.info("compiling the CPU kernels, once for this machine", compiler=compiler, into=str(target.parent))
    started = time.monotonic()
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        _run([compiler, *flags, str(SOURCE / "kernels.cpp"), "-o", name])
        os.chmod(name, 0o755)
        os.rename(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
    log.info("CPU kernels compiled", seconds=round(time.monotonic() - started, 1))


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not run: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{command[0]} failed with status {done.returncode}: {' '.join(lines[:3])}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; it goes by itself when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
