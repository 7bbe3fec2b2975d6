"""Keeps children running: starts all at once, in any order, starts again what ends, with back-off.

It gives up on a child that cannot come up: exit code 2 (its settings cannot work) before it was ever ready, or
`MOST_STARTS` ends before it was ever ready. Once it was ready, a child is started again for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baton.cli.up.backoff import Backoff
from baton.cli.up.child import ChildSpec, run_child
from baton.cli.up.lines import LogLine, parse_line
from baton.core.errors import ConfigError, Unavailable
from baton.runtime.lifecycle import EXIT_CONFIG, cancel_and_wait

MOST_STARTS = 5
STOP_GRACE_S, LAST_GRACE_S = 2.5, 1.0  # one after the other: everything has ended within 5 s
_TAIL_LINES = 12


@dataclass(slots=True)
class ChildState:
    """What is known of one child. `phase`: starting | ready | restarting | stopped; `note`: its latest message."""

    spec: ChildSpec
    phase: str = "starting"
    pid: int | None = None
    starts: int = 0
    was_ready: bool = False
    note: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))


class Listener(Protocol):
    """Told what happens; must not block."""

    def line(self, state: ChildState, line: LogLine) -> None:
        """The child wrote a line."""

    def changed(self, state: ChildState) -> None:
        """Phase, pid or note of the child changed."""

    def ended(self, state: ChildState, how: str, delay_s: float) -> None:
        """The child ended unexpectedly and is started again after `delay_s`."""

    def stopping(self) -> None:
        """All children are being ended."""


class Supervisor:
    """Runs `specs` until cancelled. `clock` and `sleep` (seconds) are injected by tests."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        listener: Listener,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.children = [ChildState(spec) for spec in specs]
        self._listener = listener
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Keep all children running. Raises the error of the first one that is given up; all have ended afterwards."""
        tasks = {asyncio.create_task(self._keep(child), name=child.spec.name): child for child in self.children}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._listener.stopping()
            await cancel_and_wait(*(task for task, child in tasks.items() if not child.spec.last))
            await cancel_and_wait(*tasks)

    async def _keep(self, child: ChildState) -> None:
        backoff = Backoff()
        while True:
            started = self._clock()
            code = await self._run_once(child)
            self._give_up_if_hopeless(child, code)
            delay_s = backoff.delay_s(self._clock() - started)
            child.phase = "restarting"
            self._listener.ended(child, describe_exit(code), delay_s)
            self._listener.changed(child)
            await self._sleep(delay_s)

    async def _run_once(self, child: ChildState) -> int:
        child.starts += 1
        child.phase, child.note = "starting", ""

        def on_start(pid: int) -> None:
            child.pid = pid
            self._listener.changed(child)

        try:
            grace_s = LAST_GRACE_S if child.spec.last else STOP_GRACE_S
            return await run_child(child.spec, on_start, lambda text: self._take_line(child, text), grace_s)
        finally:
            child.phase, child.pid = "stopped", None
            self._listener.changed(child)

    def _take_line(self, child: ChildState, text: str) -> None:
        line = parse_line(text)
        child.tail.append(text)
        self._listener.line(child, line)
        if line.says_ready and child.phase == "starting":
            child.phase, child.was_ready = "ready", True
        child.note = line.summary
        if child.phase == "starting" or line.says_ready:
            self._listener.changed(child)

    def _give_up_if_hopeless(self, child: ChildState, code: int) -> None:
        if child.was_ready:
            return
        name = child.spec.name
        if code == EXIT_CONFIG:
            raise ConfigError(f"{name}: {_error_text(child.tail) or 'its settings cannot work'}")
        if child.starts >= MOST_STARTS:
            last = "\n  ".join(child.tail)
            how = describe_exit(code)
            raise Unavailable(f"{name} {how}, {child.starts} times before it was ready; its last lines:\n  {last}")


def describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        number = signal.Signals(-code)
        return f"was ended by {number.name}" + (" (out of memory?)" if number == signal.SIGKILL else "")
    return f"was ended by signal {-code}"


def _error_text(tail: Sequence[str]) -> str:
    """The last `error: ...` line, without its prefix."""
    return next((text.removeprefix("error: ") for text in reversed(tail) if text.startswith("error: ")), "")
