"""The supervisor, with small Python programs as children."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from baton.cli.up.backoff import Backoff
from baton.cli.up.child import ChildSpec, run_child
from baton.cli.up.lines import LogLine, parse_line
from baton.cli.up.supervisor import ChildState, Supervisor
from baton.core.errors import ConfigError, Unavailable
from baton.runtime.lifecycle import cancel_and_wait

READY = 'print(\'{"event": "ready", "level": "info"}\', flush=True)'
FOREVER = "import signal; signal.pause()"


def child(name: str, code: str, **options: bool) -> ChildSpec:
    return ChildSpec(name, "fake", (sys.executable, "-S", "-c", code), **options)


class Recorder:
    """A listener that remembers what it was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.ends: list[tuple[str, str, float]] = []
        self.changes = asyncio.Condition()
        self.stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    def line(self, state: ChildState, line: LogLine) -> None:
        self.lines.append((state.spec.name, line.text))

    def changed(self, state: ChildState) -> None:
        task = asyncio.create_task(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def ended(self, state: ChildState, how: str, delay_s: float) -> None:
        self.ends.append((state.spec.name, how, delay_s))

    def stopping(self) -> None:
        self.stopped = True

    async def _notify(self) -> None:
        async with self.changes:
            self.changes.notify_all()

    async def until(self, supervisor: Supervisor, phases: Sequence[str]) -> None:
        async with asyncio.timeout(20), self.changes:
            await self.changes.wait_for(lambda: [state.phase for state in supervisor.children] == list(phases))


class Clock:
    """Time that passes only where a child is said to have run, or the supervisor sleeps."""

    def __init__(self, run_s: Sequence[float]) -> None:
        self._runs = iter(run_s)
        self._now = 0.0
        self._starts = True
        self.slept: list[float] = []

    def __call__(self) -> float:
        if not self._starts:
            self._now += next(self._runs)
        self._starts = not self._starts
        return self._now

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)


def test_backoff_doubles_is_bounded_and_resets_after_a_stable_run() -> None:
    backoff = Backoff(first_s=0.2, most_s=1.0, stable_s=10)
    assert [round(backoff.delay_s(1), 1) for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.delay_s(11) == 0.2
    assert backoff.delay_s(0) == 0.4


async def test_a_child_is_started_again_with_backoff(tmp_path: Path) -> None:
    # Ready each time; it ends at once three times and stays on the fourth start.
    counter = tmp_path / "starts"
    code = f"""
import os, signal
{READY}
with open({str(counter)!r}, "a+") as file:
    file.write("x"); file.flush(); file.seek(0); starts = len(file.read())
if starts < 4: os._exit(3)
signal.pause()
"""
    recorder, clock = Recorder(), Clock([0.0, 0.0, 60.0])
    supervisor = Supervisor([child("one", code)], recorder, clock=clock, sleep=clock.sleep)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(20), recorder.changes:
        await recorder.changes.wait_for(lambda: supervisor.children[0].starts == 4)
        await recorder.changes.wait_for(lambda: supervisor.children[0].phase == "ready")
    assert clock.slept == [0.2, 0.4, 0.2]  # the third run was a long one
    assert recorder.ends[0] == ("one", "ended with exit code 3", 0.2)
    await cancel_and_wait(running)
    assert supervisor.children[0].pid is None


async def test_a_killed_child_comes_back_and_the_others_stay() -> None:
    recorder = Recorder()
    specs = [child("one", f"{READY}; {FOREVER}"), child("two", f"{READY}; {FOREVER}")]
    supervisor = Supervisor(specs, recorder)
    running = asyncio.create_task(supervisor.run())
    await recorder.until(supervisor, ["ready", "ready"])
    first, second = (state.pid for state in supervisor.children)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await recorder.until(supervisor, ["restarting", "ready"])
    await recorder.until(supervisor, ["ready", "ready"])
    assert supervisor.children[0].pid != first
    assert supervisor.children[1].pid == second
    assert "SIGKILL" in recorder.ends[0][1]
    await cancel_and_wait(running)
    assert recorder.stopped


async def test_settings_that_cannot_work_end_everything() -> None:
    recorder = Recorder()
    code = "import sys; print('some log'); print('error: port is wrong', file=sys.stderr); sys.exit(2)"
    supervisor = Supervisor([child("good", FOREVER), child("bad", code)], recorder)
    with pytest.raises(ConfigError, match=r"^bad: port is wrong$"):
        await asyncio.wait_for(supervisor.run(), 20)
    assert [state.starts for state in supervisor.children] == [1, 1]
    assert recorder.ends == []


async def test_exit_code_2_of_a_child_that_was_ready_is_a_crash_like_others() -> None:
    recorder, clock = Recorder(), Clock([0.0] * 9)
    supervisor = Supervisor([child("one", f"{READY}; raise SystemExit(2)")], recorder, clock=clock, sleep=clock.sleep)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(20), recorder.changes:
        await recorder.changes.wait_for(lambda: supervisor.children[0].starts >= 3)
    assert not running.done()
    await cancel_and_wait(running)


async def test_a_child_that_never_comes_up_is_given_up_with_its_last_lines() -> None:
    recorder, clock = Recorder(), Clock([0.0] * 9)
    supervisor = Supervisor([child("one", "raise ValueError('a defect')")], recorder, clock=clock, sleep=clock.sleep)
    with pytest.raises(Unavailable, match=r"(?s)one ended with exit code 1, 5 times .*ValueError: a defect"):
        await asyncio.wait_for(supervisor.run(), 20)
    assert len(clock.slept) == 4


async def test_output_is_passed_on_line_by_line_whole_or_in_pieces() -> None:
    lines: list[str] = []
    code = "import sys; sys.stdout.write('a\\nb' * 2 + '\\xff\\n' + 'x' * 200_000 + '\\nend'); sys.exit(7)"
    returned = await run_child(child("one", code), lambda pid: None, lines.append)
    assert returned == 7
    assert lines[:2] == ["a", "ba"]
    assert lines[-1] == "end"
    assert sum(len(line) for line in lines if set(line) == {"x"}) == 200_000


async def test_the_whole_group_ends_with_its_leader() -> None:
    code = f"""
import subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-S", "-c", {FOREVER!r}])
print(grandchild.pid, flush=True)
"""
    lines: list[str] = []
    await asyncio.wait_for(run_child(child("one", code), lambda pid: None, lines.append), 20)
    assert gone(int(lines[0]))


def gone(pid: int) -> bool:
    """Whether a process has ended, or ends within seconds (one that is adopted is reaped by its new parent)."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], 10)[0])
    finally:
        os.close(watch)


PROGRAM = """
import json, sys
from baton.cli.up.child import ChildSpec
from baton.cli.up.supervisor import Supervisor
from baton.runtime.lifecycle import run_service

class Listener:
    def line(self, state, line):
        print(json.dumps([state.spec.name, state.pid, line.text]), flush=True)
    def changed(self, state): pass
    def ended(self, state, how, delay_s): pass
    def stopping(self): pass

specs = [ChildSpec(name, "fake", (sys.executable, "-S", "-c", code)) for name, code in json.loads(sys.argv[1])]
sys.exit(run_service(lambda: Supervisor(specs, Listener()).run()))
"""


def start_supervisor(*children: tuple[str, str]) -> tuple[subprocess.Popen[str], list[int]]:
    """A supervisor in a process of its own, once every child has written a line; and the children's pids."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(children)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    pids = {name: pid for name, pid, _ in (json.loads(program.stdout.readline()) for _ in children)}
    return program, [pids[name] for name, _ in children]


def test_a_killed_supervisor_leaves_no_child() -> None:
    program, pids = start_supervisor(("one", f"{READY}; {FOREVER}"), ("two", f"{READY}; {FOREVER}"))
    program.kill()
    program.wait()
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_within_five_seconds(number: signal.Signals) -> None:
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}\nwhile True: signal.pause()"
    program, pids = start_supervisor(("polite", f"{READY}; {FOREVER}"), ("deaf", deaf))
    started = time.monotonic()
    program.send_signal(number)
    program.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert program.returncode == 0
    assert all(gone(pid) for pid in pids)


def test_lines_of_logs_and_of_others() -> None:
    text = '{"event": "placed", "level": "warning", "timestamp": "2026-01-02T03:04:05Z", "service": "r", "n": 3}'
    line = parse_line(text)
    assert (line.event, line.level, line.fields, line.summary) == ("placed", "warning", {"n": 3}, "placed n=3")
    assert line.at is not None and line.at.year == 2026
    assert parse_line("plain").summary == "plain"
    assert parse_line("{not json").summary == "{not json"
    assert parse_line('{"no": "event"}').record is None
    assert parse_line('{"event": "x", "timestamp": 7}').at is None


@pytest.mark.parametrize(
    ("event", "ready"),
    [
        ("ready", True),
        ("gateway ready", True),
        ("ready at 127.0.0.1:1", True),
        ("router listens", True),
        ("1:M 21 Nov 2026 02:03:04.000 * Ready to accept connections", True),
        ("1:M 21 Nov 2026 02:03:04.000 * The server is now ready to accept connections at /x.sock", True),
        ("not ready", False),
        ("already there", False),
        ("waits for a router to be ready soon", False),
    ],
)
def test_who_says_ready(event: str, ready: bool) -> None:
    assert parse_line(json.dumps({"event": event})).says_ready is ready
