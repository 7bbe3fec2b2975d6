"""A runner process: started in its peer's Python, spoken to by lines of JSON, stopped while others are measured."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from baton.runtime.tied import tied_command

START_TIMEOUT_S = 600.0
_TAIL_LINES = 4


class RunnerFailed(Exception):
    """The engine cannot do what was asked; the message says why. `fatal`: its process is gone."""

    def __init__(self, message: str, *, fatal: bool) -> None:
        super().__init__(message)
        self.fatal = fatal


class Link:
    """One runner. It runs only between `ask` and its answer: the rest of the time its whole group is stopped, so that
    neither its threads nor its helpers disturb others. `close` ends it, as does the end of this process: a stopped
    process would never notice that by itself."""

    def __init__(self, python: Path, script: Path, options: dict[str, Any], environment: dict[str, str]) -> None:
        """Start it, and wait for its first token. Raises RunnerFailed. `start_s`: from nothing to the first token."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        started = time.monotonic()
        self._process = subprocess.Popen(
            tied_command([str(python), str(script)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, options["cores"]),
        )
        self._rest = b""
        try:
            ready = self._exchange(options, START_TIMEOUT_S)
        except RunnerFailed:
            self.close()
            raise
        self.start_s = time.monotonic() - started
        self.load_s: float = ready["load_s"]
        self.about: str = ready["about"]
        self._signal(signal.SIGSTOP)

    def ask(self, timeout_s: float, **command: Any) -> dict[str, Any]:
        """Have `command` done. Raises RunnerFailed when it cannot be, or takes longer."""
        if self._log.closed:
            raise RunnerFailed("it was ended", fatal=True)
        self._signal(signal.SIGCONT)
        try:
            return self._exchange(command, timeout_s)
        finally:
            self._signal(signal.SIGSTOP)

    def memory_bytes(self) -> int:
        """Peak resident memory of its processes, added up."""
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getsid(int(status.parent.name)) == self._process.pid:
                    lines = status.read_text().splitlines()
                    total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
            except (OSError, ValueError):
                continue  # it has just ended
        return total

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise RunnerFailed(self._last_words(), fatal=True) from None
        reply: dict[str, Any] = json.loads(self._read_line(timeout_s))
        if "error" in reply:
            raise RunnerFailed(str(reply["error"])[:300], fatal=False)
        return reply

    def _read_line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise RunnerFailed(f"no answer within {timeout_s:.0f} s", fatal=True)
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    raise RunnerFailed(self._last_words(), fatal=True)
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
        return f"the process ended with {code}: {' | '.join(tail)}"[:300]

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
