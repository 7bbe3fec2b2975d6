"""Where requests wait for their grammar: between assignment and the engine.

Others pass at once. One whose structure is compiled elsewhere waits a bounded time and stops nobody; who is cancelled
meanwhile is dropped by the dispatcher when the wait is over. All on the asyncio loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from baton.core.errors import BatonError, InternalError, InvalidRequest
from baton.engine.api import EngineRequest
from baton.engine.grammar.compiler import Grammar, GrammarCompiler

Admit = Callable[[EngineRequest], None]
Refuse = Callable[[EngineRequest, BatonError], None]


class GrammarGate:
    """Calls `admit` with each request, its grammar attached, or `refuse` with why it cannot have one; once."""

    def __init__(self, compiler: GrammarCompiler | None, admit: Admit, refuse: Refuse) -> None:
        """`compiler`: None where there is none; then requests pass as they are."""
        self._compiler = compiler
        self._admit = admit
        self._refuse = refuse
        self._loop = asyncio.get_running_loop()

    def pass_on(self, request: EngineRequest) -> None:
        """Now or soon. Order is kept among requests that do not wait."""
        structure = request.sampling.structure
        if structure is None or self._compiler is None:
            self._admit(request)
            return
        try:
            future = self._compiler.compile(structure)
        except BatonError as error:
            self._refuse(request, error)
            return
        if future.done():
            self._settle(request, future)
        else:
            self._wait(request, future, self._compiler.limits.compile_s)

    def close(self) -> None:
        """Nothing is compiled any more."""
        if self._compiler is not None:
            self._compiler.close()

    def _wait(self, request: EngineRequest, future: Future[Grammar], timeout_s: float) -> None:
        waiting = True

        def settle() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                timer.cancel()
                self._settle(request, future)

        def expire() -> None:
            nonlocal waiting
            waiting = False
            message = f"the structure is not compiled after {timeout_s:g} s; make it simpler"
            self._refuse(request, InvalidRequest(message, param="structure"))

        def compiled(done: Future[Grammar]) -> None:
            del done
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(settle)

        timer = self._loop.call_later(timeout_s, expire)
        future.add_done_callback(compiled)

    def _settle(self, request: EngineRequest, future: Future[Grammar]) -> None:
        if future.cancelled():
            return  # the worker ends
        error = future.exception()
        if error is None:
            self._admit(replace(request, grammar=future.result()))
        elif isinstance(error, BatonError):
            self._refuse(request, error)
        else:
            self._refuse(request, InternalError(f"compiling a structure failed: {type(error).__name__}: {error}"))
