from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from baton.core.errors import ConfigError
from baton.runtime.lifecycle import cancel_and_wait, parse_host_port

SERVICE = """
import asyncio, sys
from baton.core.errors import ConfigError, Unavailable
from baton.runtime.lifecycle import run_service

async def serve():
    print("serving", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("stopping", flush=True)
        {stop}
        print("stopped", flush=True)

async def refuse():
    raise ConfigError("port is wrong")

async def fail():
    raise ValueError("a defect")

async def end():
    return None

sys.exit(run_service({factory}))
"""


def start(factory: str, stop: str = "pass") -> subprocess.Popen[str]:
    code = SERVICE.format(factory=factory, stop=stop)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_stops_gracefully(number: signal.Signals) -> None:
    process = start("serve")
    assert read_line(process) == "serving"
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert out.split() == ["stopping", "stopped"]
    assert process.returncode == 0


def test_second_signal_ends_at_once() -> None:
    process = start("serve", stop="await asyncio.Event().wait()")
    assert read_line(process) == "serving"
    process.send_signal(signal.SIGTERM)
    assert read_line(process) == "stopping"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert "stopped" not in out
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("factory", "code", "message"),
    [("refuse", 2, "error: port is wrong\n"), ("fail", 1, "ValueError: a defect"), ("end", 0, "")],
)
def test_exit_codes(factory: str, code: int, message: str) -> None:
    process = start(factory)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert message in err + out
    if code == 2:
        assert err == message


def test_a_tied_process_dies_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; from baton.runtime.tied import tied_command\n"
            "sleeper = 'import time; print(1, flush=True); time.sleep(60)'\n"
            "child = subprocess.Popen(tied_command([sys.executable, '-c', sleeper]))\n"
            "print(child.pid, flush=True); child.wait()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = {read_line(parent), read_line(parent)}  # the child has become its command
    child_pid = int((lines - {"1"}).pop())
    watch = os.pidfd_open(child_pid)
    parent.kill()
    parent.wait()
    assert parent.stdout is not None
    assert parent.stdout.read() == ""  # its other holder is gone as well
    os.close(watch)


def test_a_process_whose_parent_is_gone_does_not_start() -> None:
    from baton.runtime import tied

    done = subprocess.run([sys.executable, tied.__file__, "1", "echo", "started"], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stdout == ""


def test_a_command_that_does_not_exist() -> None:
    from baton.runtime import tied

    done = subprocess.run(tied.tied_command(["/no/such/program"]), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: cannot start /no/such/program: No such file or directory\n"


async def test_cancel_and_wait_waits_for_the_end() -> None:
    ended = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def failing() -> None:
        raise ValueError("dropped")

    tasks = [asyncio.create_task(slow()), asyncio.create_task(slow())]
    done = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await cancel_and_wait(*tasks, done, None)
    assert ended == [True, True]


async def test_cancel_and_wait_passes_on_its_own_cancellation() -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(cancel_and_wait(task))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert task.done()


@pytest.mark.parametrize(
    ("text", "parts"), [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("host:7", ("host", 7))]
)
def test_parse_host_port(text: str, parts: tuple[str, int]) -> None:
    assert parse_host_port(text) == parts


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:x", "host:65536", "::1:80", "host:-1"])
def test_parse_host_port_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        parse_host_port(text)
