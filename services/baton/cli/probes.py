"""Looks at this machine, one question per function; `baton check-env` shows the answers.

Whatever may hang or crash (drivers, torch, UCX) runs in a process of its own with a time limit.
"""

from __future__ import annotations

import json
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from baton.core.errors import ConfigError
from baton.runtime import cores
from baton.runtime.redis_binary import find_redis_server

PACKAGE = "baton-serving"
_PROBE_TIMEOUT_S = 60.0
_LEAST_PYTHON = (3, 11)
_LEAST_MEMORY_BYTES = 2 << 30
_LEAST_OPEN_FILES = 1024
_CAP_SYS_PTRACE = 19
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


@dataclass(frozen=True, slots=True)
class Check:
    """`status`: ok | missing | warn. `mend` says what to do when it is not ok."""

    name: str
    status: str
    detail: str
    mend: str = ""
    required: bool = False


def python() -> Check:
    version = platform.python_version()
    if sys.version_info >= _LEAST_PYTHON:
        return Check("Python", "ok", version, required=True)
    return Check("Python", "missing", version, "Python 3.11 or newer is needed", required=True)


def packages(extra: str, required: bool) -> Check:
    """Installed requirements of one extra of the package ("" = what all services need)."""
    name = f"packages: {extra}" if extra else "packages"
    needed = list(_requirements(extra))
    absent = [requirement for requirement, version in needed if version is None]
    if absent:
        what = f"{PACKAGE}[{extra}]" if extra else PACKAGE
        mend = f"pip install '{what}'" if required else f"optional: pip install '{what}'"
        return Check(name, "missing", f"not installed: {', '.join(absent)}", mend, required)
    return Check(name, "ok", ", ".join(f"{requirement} {version}" for requirement, version in needed), "", required)


def _requirements(extra: str) -> Iterable[tuple[str, str | None]]:
    """(distribution, installed version or None) of every requirement, except our own extras."""
    for text in metadata.requires(PACKAGE) or []:
        marked = re.search(r"extra == ['\"]([\w-]+)['\"]", text)
        found = re.match(r"[\w.-]+", text)
        if found is None or found[0] == PACKAGE or (marked[1] if marked else "") != extra:
            continue
        try:
            yield found[0], metadata.version(found[0])
        except metadata.PackageNotFoundError:
            yield found[0], None


def cpu() -> Check:
    info = _read("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info)
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", info)
    present = set(flags[1].split()) if flags else set()
    features = [name for name in _CPU_FEATURES if name in present]
    detail = f"{model[1].strip() if model else platform.machine()}, {cores.available().count} cores usable"
    return Check("CPU", "ok", f"{detail}, {' '.join(features) or 'no vector features known'}")


def memory() -> Check:
    sizes = {key: int(kib) << 10 for key, kib in re.findall(r"(\w+):\s+(\d+) kB", _read("/proc/meminfo"))}
    if "MemAvailable" not in sizes:
        return Check("memory", "ok", "size unknown on this system")
    available, total = sizes["MemAvailable"], sizes.get("MemTotal", 0)
    detail = f"{available / 2**30:.1f} GiB available of {total / 2**30:.1f} GiB"
    if available < _LEAST_MEMORY_BYTES:
        return Check("memory", "warn", detail, "end other programs, or run fewer workers (--prefill 1 --decode 1)")
    return Check("memory", "ok", detail)


def open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _LEAST_OPEN_FILES:
        return Check("open files", "warn", f"at most {soft} per process", f"ulimit -n {min(hard, 65536)}")
    return Check("open files", "ok", f"at most {soft} per process")


def gpu() -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", "missing", "none found; workers run on the CPU", "optional: an NVIDIA GPU with its driver")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    code, output = _run(query)
    if code != 0:
        return Check("GPU", "warn", f"nvidia-smi failed: {_last_line(output)}", "mend the NVIDIA driver")
    return Check("GPU", "ok", "; ".join(line.strip() for line in output.splitlines() if line.strip()))


def gpu_path() -> Check:
    """Whether workers with device = cuda can run here, at full speed."""
    code, output = _run([sys.executable, "-c", _GPU_PATH_PROBE])
    mend = "optional: a torch built for CUDA and pip install 'baton-serving[cuda]' (docs/gpu.md)"
    if code != 0:
        return Check("GPU path", "missing", f"cannot be asked: {_last_line(output)}", mend)
    problems: list[str] = json.loads(_last_line(output))
    if problems:
        return Check("GPU path", "missing", "; ".join(problems), mend)
    return Check("GPU path", "ok", "FlashInfer and CUDA graphs; not tested on hardware so far")


_GPU_PATH_PROBE = "import json; from baton.engine.cuda.support import problems; print(json.dumps(problems()))"


def torch(required: bool) -> Check:
    code, output = _run([sys.executable, "-c", _TORCH_PROBE])
    if code != 0:
        missing = "No module named 'torch'" in output
        detail = "not installed" if missing else f"does not load: {_last_line(output)}"
        return Check("torch", "missing", detail, "pip install torch==2.13.0", required)
    found = json.loads(_last_line(output))
    device = ", ".join(found["gpus"]) or f"CPU only ({found['cpu']})"
    version = tuple(int(part) for part in re.findall(r"\d+", found["version"])[:2])
    if version < (2, 11):
        return Check("torch", "missing", f"{found['version']} is too old", "pip install 'torch>=2.11'", required)
    return Check("torch", "ok", f"{found['version']}, {device}", "", required)


_TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"version": torch.__version__, "gpus": gpus, "cpu": torch.backends.cpu.get_cpu_capability()}))
"""


def ucx() -> Check:
    """UCX through NIXL. Not required: without RDMA nothing uses it unless told to."""
    mend = "pip install --no-deps nixl-cu13==1.5.1 (335 MB); without it KV pages travel by plain TCP"
    code, output = _run([sys.executable, "-m", "baton.cli.ucx_probe"])
    if code != 0:
        absent = "No module named 'nixl_cu13'" in output
        return Check("UCX (NIXL)", "missing", "not installed" if absent else f"fails: {_last_line(output)}", mend)
    found = json.loads(_last_line(output))
    detail = f"NIXL {found['nixl']}, UCX {found['ucx']}, transports: {' '.join(found['transports'])}"
    return Check("UCX (NIXL)", "ok", detail)


def same_host_pages() -> Check:
    """Whether agents on this host map each other's pools; if not, whether UCX may copy from process to process."""
    name = "pages on one host"
    try:
        from baton.cli import same_host_probe
    except ImportError as error:
        return Check(name, "missing", f"the KV agent does not load: {error}", "pip install 'baton-serving[kv-agent]'")
    failure = same_host_probe.failure()
    if not failure:
        return Check(name, "ok", "copied once, from shared memory")
    scope = _read("/proc/sys/kernel/yama/ptrace_scope").strip()
    capabilities = re.search(r"CapEff:\s*(\w+)", _read("/proc/self/status"))
    may_trace = capabilities is not None and int(capabilities[1], 16) >> _CAP_SYS_PTRACE & 1
    if scope in ("", "0") or may_trace:
        return Check(name, "warn", f"not from shared memory ({failure}); UCX copies between processes (cma)")
    mend = "sysctl kernel.yama.ptrace_scope=0; without it pages on one host travel by TCP"
    return Check(name, "warn", f"not from shared memory ({failure}), and kernel.yama.ptrace_scope = {scope}", mend)


def redis_server(required: bool) -> Check:
    try:
        path = find_redis_server()
    except ConfigError as error:
        return Check("Redis server", "missing", "none found", error.message, required)
    code, output = _run([str(path), "--version"])
    if code != 0:
        detail = f"{path} does not run: {_last_line(output)}"
        return Check("Redis server", "missing", detail, "install redis-server", required)
    version = re.search(r"v=(\S+)", output)
    return Check("Redis server", "ok", f"{version[1] if version else '?'} ({path})", "", required)


def compiler() -> Check:
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return Check("C++ compiler", "ok", _run([path, "--version"])[1].splitlines()[0])
    return Check("C++ compiler", "missing", "none found", "optional, for faster attention on the CPU: install g++")


def _run(command: list[str]) -> tuple[int, str]:
    """Exit code and output of a program; a code of -1 when it did not end in time."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {_PROBE_TIMEOUT_S:g} s"
    except OSError as error:
        return -1, str(error)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr + done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no output"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
