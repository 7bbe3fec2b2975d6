"""A thread that steps an engine for callers in the same process, and gives each request its own outputs.

Callers may be on any thread. All engine methods run on the driver's own; it sleeps while there is nothing to do.
Knows nothing of text.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from baton.core.attempt import Attempt
from baton.core.errors import BatonError, Cancelled, InternalError, Unavailable
from baton.engine.api import EngineRequest, RowOutput, StepEngine, StepOutput
from baton.engine.grammar.compiler import Grammar, GrammarCompiler


@dataclass(frozen=True, slots=True)
class Progress:
    """What a request's listener is told: new tokens, how much of the prompt was cached, or the error that ended it."""

    row: RowOutput | None = None
    cached_tokens: int | None = None
    error: BatonError | None = None


Listener = Callable[[Progress], None]  # called on the driver's thread; must not block


class Driver:
    """Owns `engine` from now on. Whatever happens, each listener is told of an end: a finish or an error."""

    def __init__(self, engine: StepEngine, grammars: GrammarCompiler | None = None) -> None:
        """`grammars`: of requests whose output is structured."""
        self._engine = engine
        self._grammars = grammars
        self._commands: deque[Callable[[], None]] = deque()
        self._listeners: dict[Attempt, Listener] = {}  # driver's thread
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, listener: Listener) -> None:
        """Run `request`. Raises Unavailable after `close`; what is wrong with the request the listener is told."""

        def listen() -> None:
            self._listeners[request.attempt] = listener

        self._post(listen)
        structure = request.sampling.structure
        if structure is None or self._grammars is None:
            self._post(lambda: self._start(request))
            return
        try:
            self._grammars.compile(structure).add_done_callback(lambda done: self._compiled(request, done))
        except BatonError as refused:
            error = refused
            self._post(lambda: self._refuse(request, error))

    def _compiled(self, request: EngineRequest, grammar: Future[Grammar]) -> None:
        """Any thread. Once the driver is closed nobody waits any more."""

        def command() -> None:
            error = grammar.exception()
            if error is None:
                self._start(replace(request, grammar=grammar.result()))
            else:
                self._refuse(request, error if isinstance(error, BatonError) else InternalError(repr(error)))

        with contextlib.suppress(Unavailable):
            if not grammar.cancelled():
                self._post(command)

    def _start(self, request: EngineRequest) -> None:
        if request.attempt not in self._listeners:
            return  # cancelled while its grammar was compiled
        try:
            self._engine.submit(request)
        except BatonError as error:
            self._refuse(request, error)

    def _refuse(self, request: EngineRequest, error: BatonError) -> None:
        if listener := self._listeners.pop(request.attempt, None):
            listener(Progress(error=error))

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
        if self._grammars is not None:
            self._grammars.close()

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
