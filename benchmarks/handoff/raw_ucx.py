"""Builds `raw_ucx.c` on first use: against the UCX that NIXL carries, with the headers of the `libucx-cu13` wheel.

The program then runs the very library that Baton's transport runs. The headers are of UCX's stable interface; they
come from the package registry (43 MB, once) into the cache folder.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from baton.kv import ucx
from baton.runtime import environ

SOURCE = Path(__file__).with_name("raw_ucx.c")
HEADERS = "libucx-cu13==1.21.0"


class CannotBuild(Exception):
    """The yardstick cannot be built here; the message says why."""


def program() -> Path:
    """Path of the compiled program. Raises CannotBuild."""
    ucp = ucx.library()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not ucp:
        raise CannotBuild("NIXL, which carries UCX, is not installed")
    if compiler is None:
        raise CannotBuild("no C compiler")
    folder = environ.cache_dir() / "bench-ucx"
    digest = hashlib.sha256(SOURCE.read_bytes() + ucp.encode()).hexdigest()[:12]
    built = folder / f"raw_ucx-{digest}"
    if not built.exists():
        libraries = Path(ucp).parent
        ucs = next(libraries.glob("libucs-*.so*"))
        paths = [f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}"]
        _run([compiler, "-O2", f"-I{_headers(folder)}", str(SOURCE), ucp, str(ucs), *paths, "-o", f"{built}.part"])
        Path(f"{built}.part").rename(built)
    return built


def _headers(folder: Path) -> Path:
    include = folder / "libucx" / "include"
    if not (include / "ucp" / "api" / "ucp.h").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), HEADERS])
        wheel = next(folder.glob("libucx_cu13-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith("libucx/include/")])
        wheel.unlink()
    return include


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")
