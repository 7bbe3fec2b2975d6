"""`baton up` as a user starts it: a process of its own, watched through its status file, ended with the test.

What tests, benchmarks and the chaos harness share: start it, look at its services and their metrics, kill one, stop it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from baton.runtime import environ
from baton.runtime.tied import tied_command

START_TIMEOUT_S = 120.0


class Up:
    """A running `baton up`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
        self.process = process
        self.log = log
        self._status = folder / "status.json"

    def status(self) -> dict[str, Any]:
        return json.loads(self._status.read_text())

    @property
    def url(self) -> str:
        return self.status()["url"]

    @property
    def model(self) -> str:
        return self.status()["model"]

    def services(self, kind: str = "") -> list[dict[str, Any]]:
        return [s for s in self.status()["services"] if kind in ("", s["kind"])]

    def service(self, name: str) -> dict[str, Any]:
        return next(s for s in self.services() if s["name"] == name)

    def kill(self, name: str) -> float:
        """kill -9 a child by its name in the status file; returns when that was."""
        os.kill(self.service(name)["pid"], signal.SIGKILL)
        return time.monotonic()

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"baton up ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
            try:
                if condition():
                    return
            except (OSError, StopIteration, json.JSONDecodeError):
                pass  # not there yet, or just being restarted
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def metric(self, service: dict[str, Any], name: str) -> float:
        """Sum of a metric's samples, or of one, its labels told: `baton_worker_pages{state="lent"}`."""
        with urllib.request.urlopen(f"http://{service['metrics']}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        samples = (line for line in lines if line.startswith((f"{name} ", f"{name}{{")))
        return sum(float(sample.rsplit(" ", 1)[1]) for sample in samples)

    def wait_for_pairs(self) -> None:
        """Until the router knows all prefill and decode workers, and each of them has its agent: until then a request
        may run whole on a decode worker."""
        (router,) = self.services("router")
        for role in ("prefill", "decode"):
            workers = self.services(role)
            connected = f'baton_router_workers_connected{{role="{role}"}}'
            self.wait(partial(self._is, router, connected, len(workers)), f"the router knows the {role} workers")
            for worker in workers:
                self.wait(partial(self._is, worker, "baton_worker_agent_connected", 1), f"{worker['name']}: agent")

    def wait_quiet(self) -> None:
        """Until no worker runs anything and no page is lent."""
        workers = [s for s in self.services() if s["kind"] in ("prefill", "decode", "unified")]
        for worker in workers:
            for name in ('baton_worker_pages{state="lent"}', "baton_worker_running_requests"):
                self.wait(partial(self._is, worker, name, 0), f"{worker['name']}: {name} is 0", 30)

    def _is(self, service: dict[str, Any], name: str, value: float) -> bool:
        return self.metric(service, name) == value


@contextmanager
def up(folder: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Up]:
    """Start it with `arguments` and environment `variables` on a free port and wait until it is ready."""
    with tempfile.TemporaryDirectory(prefix="baton-") as runtime:  # paths of Unix sockets are short
        yield from _up(Path(runtime), folder / "up.log", arguments, variables or {})


def _up(runtime: Path, log: Path, arguments: Sequence[str], variables: Mapping[str, str]) -> Iterator[Up]:
    command = [sys.executable, "-m", "baton.cli.main", "up", "--port=0", f"--runtime-dir={runtime}", *arguments]
    inherited = {name: value for name, value in environ.variables().items() if not name.startswith("UCX_")}
    environment = {**inherited, "PYTHONUNBUFFERED": "1", **variables}
    with log.open("wb") as output:
        process = subprocess.Popen(tied_command(command), stdout=output, stderr=subprocess.STDOUT, env=environment)
    running = Up(process, runtime, log)
    try:
        running.wait(lambda: running.status()["ready"], "baton up is ready")
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
