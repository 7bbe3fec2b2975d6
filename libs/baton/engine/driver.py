"""A thread that steps an engine for callers in the same process, and gives each request its own outputs.

Callers may be on any thread. All engine methods run on the driver's own; it sleeps while there is nothing to do.
Knows nothing of text.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from baton.core.attempt import Attempt
from baton.core.errors import BatonError, Cancelled, InternalError, Unavailable
from baton.engine.api import EngineRequest, RowOutput, StepEngine, StepOutput


@dataclass(frozen=True, slots=True)
class Progress:
    """What a request's listener is told: new tokens, how much of the prompt was cached, or the error that ended it."""

    row: RowOutput | None = None
    cached_tokens: int | None = None
    error: BatonError | None = None


Listener = Callable[[Progress], None]  # called on the driver's thread; must not block


class Driver:
    """Owns `engine` from now on. Whatever happens, each listener is told of an end: a finish or an error."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._commands: deque[Callable[[], None]] = deque()
        self._listeners: dict[Attempt, Listener] = {}  # driver's thread
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, listener: Listener) -> None:
        """Run `request`. Raises Unavailable after `close`; what is wrong with the request the listener is told."""

        def command() -> None:
            try:
                self._engine.submit(request)
            except BatonError as error:
                listener(Progress(error=error))
            else:
                self._listeners[request.attempt] = listener

        self._post(command)

    def cancel(self, attempt: Attempt) -> None:
        """Stop a request; its listener is told nothing more. No effect on one that has ended."""

        def command() -> None:
            if self._listeners.pop(attempt, None) is not None:
                self._engine.cancel(attempt)

        with self._wake:
            if not self._stopping:
                self._commands.append(command)
                self._wake.notify()

    def close(self) -> None:
        """End the thread after the step in progress; requests that are not done end with Cancelled. May be repeated."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _post(self, command: Callable[[], None]) -> None:
        with self._wake:
            if self._stopping:
                raise Unavailable("the engine is shut down")
            self._commands.append(command)
            self._wake.notify()

    def _run(self) -> None:
        end: BatonError = Cancelled("the engine was shut down")
        try:
            while self._take_commands():
                if self._engine.has_work:
                    self._tell(self._engine.step())
        except Exception as error:
            end = InternalError(f"the engine's thread ended: {type(error).__name__}: {error}")
            end.__cause__ = error
        with self._wake:
            self._stopping = True
        for command in self._commands:  # submissions among them have to be told, too
            command()
        for listener in self._listeners.values():
            listener(Progress(error=end))
        self._engine.close()

    def _take_commands(self) -> bool:
        """Wait for something to do, and run what was posted. False: it is time to stop."""
        with self._wake:
            while not (self._stopping or self._commands or self._engine.has_work):
                self._wake.wait()
            if self._stopping:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        return True

    def _tell(self, output: StepOutput) -> None:
        for admitted in output.admitted:
            if listener := self._listeners.get(admitted.attempt):
                listener(Progress(cached_tokens=admitted.cached_tokens))
        for row in output.rows:
            if listener := self._listeners.get(row.attempt):
                listener(Progress(row=row))
                if row.finish is not None:
                    del self._listeners[row.attempt]
        for failed in output.failed:
            if listener := self._listeners.pop(failed.attempt, None):
                listener(Progress(error=failed.error))
