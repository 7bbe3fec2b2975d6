"""The engine's own thread: commands go in, step outputs come out.

All engine methods run here. `post` may be called from any thread; `deliver` is called on the asyncio loop, in order.
The thread sleeps on a condition while there is nothing to do.
"""

from __future__ import annotations

import asyncio
import collections
import threading
from collections.abc import Callable

import structlog

from baton.core.errors import BatonError, InternalError
from baton.engine.api import EngineLoad, EngineRequest, Failed, StepEngine, StepOutput

log = structlog.get_logger(__name__)

Command = Callable[[StepEngine], object]  # what it returns is dropped
Deliver = Callable[[StepOutput, EngineLoad], None]


class EngineLoop:
    """Runs `engine.step()` while there is work.

    `deliver(output, load)` gets every step's output, and an empty one when commands alone have changed the load.
    A command or step that raises is a defect: `on_crash` is called with it on the asyncio loop and the thread ends.
    The engine is closed with the thread.
    """

    def __init__(self, engine: StepEngine, deliver: Deliver, on_crash: Callable[[BaseException], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._on_crash = on_crash
        self._commands: collections.deque[Command] = collections.deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step in progress."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def post(self, command: Command) -> None:
        """Run `command(engine)` between two steps, in order of posting. Any thread."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def submit(self, request: EngineRequest) -> None:
        """Submit a request; one that cannot run is delivered as Failed."""

        def command(engine: StepEngine) -> None:
            try:
                engine.submit(request)
            except BatonError as error:
                self._hand_over(StepOutput(failed=[Failed(request.attempt, error)]))

        self.post(command)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                changed = self._run_commands()
                if self._engine.has_work:
                    self._hand_over(self._engine.step())
                elif changed:
                    self._hand_over(StepOutput())  # pages given back while idle: the load is another
        except BaseException as error:
            log.critical("engine thread ended", exc_info=error)
            crash = error if isinstance(error, Exception) else InternalError(repr(error))
            self._loop.call_soon_threadsafe(self._on_crash, crash)
        finally:
            self._engine.close()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._stopping or self._commands or self._engine.has_work):
                self._wake.wait()
            return not self._stopping

    def _run_commands(self) -> bool:
        """Run what was posted; True when there was anything."""
        changed = False
        while True:
            with self._wake:
                if not self._commands:
                    return changed
                command = self._commands.popleft()
            command(self._engine)
            changed = True

    def _hand_over(self, output: StepOutput) -> None:
        self._loop.call_soon_threadsafe(self._deliver, output, self._engine.load())
