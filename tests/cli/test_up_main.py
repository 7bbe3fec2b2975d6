"""`baton up` as a process, with small programs in the place of the services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton.cli import main as cli
from baton.cli.up import plan
from baton.cli.up.model import find_model
from baton.cli.up.network import check_port, free_port, http_status, pick_ports
from baton.cli.up.plan import Model, Planner, default_pool_bytes
from baton.cli.up.runtime_dir import runtime_dir
from baton.cli.up.settings import UpSettings
from baton.core.errors import CheckpointError, ConfigError
from baton.models import DRAFT, TINY, bundled

PROGRAM = """
import sys
from baton.cli.main import main
from baton.cli.up import main as up
from baton.cli.up.child import ChildSpec

GATEWAY = '''
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print('{"event": "gateway ready", "level": "info"}', flush=True)
server.serve_forever()
'''
WORKER = '''
import signal, sys
print('{"event": "loading weights", "level": "info", "percent": 50}', flush=True)
if sys.argv[1] == "bad":
    print("error: no such model", flush=True)
    sys.exit(2)
print('{"event": "ready", "level": "info"}', flush=True)
signal.pause()
'''

class FakePlanner:
    def __init__(self, settings, config, folder, model, port):
        self.port, self.name = port, model.name
    def children(self):
        python = (sys.executable, "-S", "-c")
        gateway = ChildSpec("gateway", "gateway", (*python, GATEWAY, str(self.port)), f"127.0.0.1:{self.port}")
        return [gateway, ChildSpec("prefill-0", "prefill", (*python, WORKER, self.name), "127.0.0.1:1")]

up.Planner = FakePlanner
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="bt-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `baton up` with arguments; what a failed test leaves running is ended."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, "up", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        line = process.stdout.readline()
        assert line, f"ended without {text!r}: {lines} {process.stderr and process.stderr.read()}"
        lines.append(line.rstrip("\n"))
    return lines


def test_from_start_to_ctrl_c(start: Start, model: Path, short_dir: Path) -> None:
    folder = short_dir / "run"
    process = start("--model", str(model), "--port", "0", "--runtime-dir", str(folder))
    lines = read_until(process, "Ctrl-C here ends everything")
    status = json.loads((folder / "status.json").read_text())
    assert status["ready"] is True and status["pid"] == process.pid and status["model"] == "tiny-model"
    assert [service["name"] for service in status["services"]] == ["gateway", "prefill-0"]
    pids = [service["pid"] for service in status["services"]]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    text = "\n".join(lines)
    assert "prefill-0       | loading weights percent=50" in text
    assert "a tiny model of its own" not in text  # said of the bundled one only
    assert f"baton chat --url {status['url']}" in text
    assert "\x1b[" not in text
    curl = text[text.index("curl -N") : text.index("  baton chat")].replace("\\\n", " ")
    assert f"{status['url']}/v1/chat/completions" in curl and '"model": "tiny-model"' in curl
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert process.returncode == 0, err
    assert "all services have ended" in out
    assert not folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_service_with_wrong_settings_stops_it_with_its_message(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    out, err = start("--model", str(folder), "--port", "0", "--log-format", "json").communicate(timeout=20)
    assert err == "error: prefill-0: no such model\n"
    records = [json.loads(line) for line in out.splitlines()]
    assert {record["child"] for record in records} >= {"baton", "prefill-0"}


def test_a_busy_port_is_told_before_anything_starts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["up", "--model", str(model), "--port", str(port)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: port {port} on 127.0.0.1 is in use")
    assert f"(pid {os.getpid()})" in captured.err and "--port" in captured.err
    assert captured.out == ""
    check_port("127.0.0.1", port)


@pytest.mark.parametrize(("name", "message"), [("none", "no such folder"), ("", "there is no config.json")])
def test_a_model_that_is_none(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--port", "0", "--model", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_without_model_the_bundled_one_is_served(model: Path) -> None:
    assert find_model(UpSettings()) == Model(bundled(TINY), "baton-tiny")
    assert find_model(UpSettings(served_name="m")) == Model(bundled(TINY), "m")
    assert find_model(UpSettings(model=model)) == Model(model, "tiny-model")


def test_an_installation_without_models_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("baton.models._FOLDER", tmp_path)
    assert cli.main(["up", "--port", "0"]) == 2
    assert f"does not hold the model 'baton-tiny': {tmp_path} has none" in capsys.readouterr().err
    (tmp_path / DRAFT).mkdir()
    (tmp_path / DRAFT / "config.json").write_text("{}")
    assert bundled(DRAFT) == tmp_path / DRAFT
    with pytest.raises(CheckpointError, match=r"'\.\./models': .* has baton-tiny-draft; install"):
        bundled("../models")


def planner(settings: UpSettings, folder: Path, config: str | None = None) -> Planner:
    return Planner(settings, config, folder, Model(Path("/models/m"), "m"), 8000)


def flags_of(child: plan.ChildSpec) -> dict[str, str]:
    pairs = (part.removeprefix("--").split("=", 1) for part in child.command if part.startswith("--") and "=" in part)
    return dict(pairs)  # type: ignore[arg-type]


def test_the_plan_has_an_agent_for_each_disaggregated_worker(tmp_path: Path) -> None:
    children = planner(UpSettings(prefill=2, decode=1, unified=1), tmp_path).children()
    by_name = {child.name: child for child in children}
    assert sorted(by_name) == [
        "decode-0", "decode-0-agent", "gateway", "prefill-0", "prefill-0-agent", "prefill-1", "prefill-1-agent",
        "redis", "router", "unified-0",
    ]  # fmt: skip
    assert by_name["redis"].last and by_name["redis"].quiet
    addresses = [child.address for child in children] + [child.metrics for child in children if child.metrics]
    assert len(set(addresses)) == len(addresses) - 1  # the gateway's metrics are on its own port
    flags = {name: flags_of(child) for name, child in by_name.items()}
    assert flags["gateway"]["routers"] == by_name["router"].address
    assert flags["prefill-0"]["agent-socket"] == flags["prefill-0-agent"]["socket"]
    assert flags["prefill-0"]["worker-id"] == "prefill-0"
    assert "agent-socket" not in flags["unified-0"]
    assert len({flag["redis-url"] for name, flag in flags.items() if name != "redis"}) == 1


def test_the_plan_leaves_alone_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "baton.toml"
    file.write_text('[worker]\nkv_memory_bytes = "64MiB"\npage_size = 32\n')
    children = {child.name: child for child in planner(UpSettings(threads=3), tmp_path, str(file)).children()}
    flags = flags_of(children["decode-0"])
    assert "kv-memory-bytes" not in flags and "page-size" not in flags
    assert flags["threads"] == "3"
    assert "quantization" not in flags
    assert flags["config"] == str(file)
    asked = planner(UpSettings(kv_memory_bytes=1 << 20), tmp_path, str(file)).children()
    assert flags_of(asked[-1 - 1])["kv-memory-bytes"] == str(1 << 20)


def test_workers_are_told_how_many_share_the_host_and_which_weights_to_use(tmp_path: Path) -> None:
    settings = UpSettings(prefill=2, decode=1, unified=1, quantization="int8")
    children = {child.name: child for child in planner(settings, tmp_path).children()}
    for name in ("prefill-1", "decode-0", "unified-0"):
        flags = flags_of(children[name])
        assert flags["host-workers"] == "4" and flags["quantization"] == "int8"
        assert "threads" not in flags


def test_settings_of_services_are_checked_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_text("[router]\nlisten_on = 3\n")
    with pytest.raises(ConfigError, match="unknown key 'listen_on'"):
        planner(UpSettings(), tmp_path, str(file)).children()


def test_an_own_redis_url_is_used(tmp_path: Path) -> None:
    children = planner(UpSettings(redis_url="redis://elsewhere:6379/0"), tmp_path).children()
    assert "redis" not in {child.name for child in children}
    assert flags_of(children[0])["redis-url"] == "redis://elsewhere:6379/0"


def test_default_pools_are_modest() -> None:
    assert default_pool_bytes(64 << 30, 2) == 256 << 20
    assert default_pool_bytes(1 << 30, 2) == 64 << 20


def test_runtime_dir_is_private_and_gone_afterwards(short_dir: Path) -> None:
    path = short_dir / "run"
    with runtime_dir(path) as folder:
        assert folder == path and folder.stat().st_mode & 0o077 == 0
        (folder / "redis.sock").touch()
        (folder / "sub").mkdir()
        with pytest.raises(ConfigError, match="belongs to a running baton up"), runtime_dir(path):
            pass
    assert not path.exists()
    path.mkdir()
    with runtime_dir(path):
        pass
    assert list(path.iterdir()) == []  # it was there before


def test_runtime_dir_of_a_killed_owner_is_taken_over_and_others_are_refused(short_dir: Path) -> None:
    (short_dir / "lock").touch()
    (short_dir / "old.sock").touch()
    with runtime_dir(short_dir):
        assert not (short_dir / "old.sock").exists()
    (short_dir / "letter.txt").touch()
    with pytest.raises(ConfigError, match="holds other files"), runtime_dir(short_dir):
        pass
    assert (short_dir / "letter.txt").exists()
    with pytest.raises(ConfigError, match="too long for Unix sockets"), runtime_dir(short_dir / ("x" * 80)):
        pass


def test_temporary_runtime_dirs_of_killed_owners_are_swept(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_dir))
    dead = short_dir / "baton-up-dead"
    dead.mkdir()
    (dead / "lock").touch()
    with runtime_dir(None) as first, runtime_dir(None) as second:
        assert not dead.exists()
        assert first != second and first.exists()
    assert list(short_dir.iterdir()) == []


async def test_ports() -> None:
    ports = pick_ports(5)
    assert len(set(ports)) == 5
    assert await http_status("127.0.0.1", ports[0], "/ready") == 0
    assert free_port("127.0.0.1") > 0
    with pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.1"):
        check_port("203.0.113.1", 8000)
