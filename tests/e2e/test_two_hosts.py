"""Two hosts: network namespaces joined by a veth pair, prefill on one, decode on the other, only the wire between them.

The transport is UCX over TCP: shared memory and cross-memory attach are off, as between real hosts.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from baton.runtime.redis_binary import find_redis_server
from baton.testing.checkpoints import make_checkpoint

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)

A, B = "10.213.7.1", "10.213.7.2"
PAGE_BYTES = 2 * 16 * 2 * 16 * 4
CLIENT = """
import sys, json, httpx
url, body = sys.argv[1:]
print(json.dumps(httpx.post(url, json=json.loads(body), timeout=60).json()))
"""


class Hosts:
    """Two namespaces and the processes in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"baton-{os.getpid()}-{side}" for side in "ab"]
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> Hosts:
        a, b = self.names
        for name in self.names:
            self._ip("netns", "add", name)
        self._ip("link", "add", "veth-a", "netns", a, "type", "veth", "peer", "name", "veth-b", "netns", b)
        for name, device, address in ((a, "veth-a", A), (b, "veth-b", B)):
            self._ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            self._ip("-n", name, "link", "set", device, "up")
            self._ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def inside(self, host: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[host], *command]

    def start(self, host: int, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        own = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
        environment = {**own, "UCX_TLS": "tcp,self", "OMP_NUM_THREADS": "1"}
        self.processes.append(
            subprocess.Popen(self.inside(host, *command), stdout=log, stderr=subprocess.STDOUT, env=environment)
        )

    def baton(self, host: int, name: str, *arguments: str) -> None:
        self.start(host, name, sys.executable, "-m", "baton.cli.main", *arguments)

    def post(self, path: str, body: dict) -> dict:
        command = self.inside(0, sys.executable, "-c", CLIENT, f"http://{A}:8000{path}", json.dumps(body))
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=90).stdout)

    def received(self) -> int:
        """Bytes that host 1 has got over the wire."""
        command = self.inside(1, "ip", "-s", "-j", "link", "show", "veth-b")
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[0]["stats64"]["rx"]["bytes"]

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log")))


def wait(hosts: Hosts, condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except (subprocess.CalledProcessError, json.JSONDecodeError, KeyError):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(hosts.logs())
        time.sleep(0.3)


def test_handoff_between_two_hosts(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama", layers=2, max_position=4096)
    redis = find_redis_server()
    assert redis is not None
    url = f"redis://{A}:6379/0"
    with Hosts(tmp_path) as hosts:
        hosts.start(
            0, "redis", str(redis), "--bind", A, "--port", "6379", "--save", "", "--protected-mode", "no",
            "--dir", str(tmp_path),
        )  # fmt: skip
        for host, role, address in ((0, "prefill", A), (1, "decode", B)):
            socket = f"--agent-socket={tmp_path}/{role}.sock"
            hosts.baton(
                host, f"{role}-agent", "kv-agent", f"--socket={tmp_path}/{role}.sock", f"--listen={address}:7200",
                "--transport=ucx",
            )  # fmt: skip
            hosts.baton(
                host, role, role, f"--model={checkpoint}", "--served-name=m", f"--listen={address}:7100",
                f"--redis-url={url}", "--kv-memory-bytes=16MiB", socket,
            )  # fmt: skip
        hosts.baton(0, "router", "router", f"--listen={A}:7000", f"--redis-url={url}")
        hosts.baton(
            0, "gateway", "gateway", f"--routers={A}:7000", f"--model={checkpoint}", "--served-name=m", f"--host={A}",
            "--port=8000",
        )  # fmt: skip
        body = {"model": "m", "max_tokens": 8, "temperature": 0}
        prompts = ([10 + (n * i) % 200 for i in range(1000)] for n in itertools.count(7))

        def crossed() -> bool:
            """Ask something new; True when its pages (two layers of 63) went from host to host."""
            before, prompt = hosts.received(), next(prompts)
            answer = hosts.post("/v1/completions", {**body, "prompt": prompt})
            if hosts.received() - before < 2 * 63 * PAGE_BYTES:
                return False  # answered by the decode worker alone, the other is not there yet
            again = hosts.post("/v1/completions", {**body, "prompt": prompt})
            assert answer["choices"][0]["text"] == again["choices"][0]["text"]
            assert answer["usage"]["completion_tokens"] == 8
            return True

        wait(hosts, crossed)
