"""Where steps run, one after the other: on the engine's own thread, or on one beside it.

On a CPU torch computes on the thread that calls it, and lets other Python threads run meanwhile: a second thread is
what a stream is on a GPU (baton.engine.cuda.lane). Knows nothing of what it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Started(Protocol[T_co]):
    """Work that runs, or has run."""

    def result(self) -> T_co:
        """Wait for its end. Raises what it has raised."""


class Lane(Protocol):
    """Runs work in order of `start`."""

    def start(self, work: Callable[[], T]) -> Started[T]:
        """Run `work` now or soon."""

    def when_done(self, tell: Callable[[int], None]) -> Callable[[int], None]:
        """What work is to call with a number, for `tell` to be called with it when all that it has done so far is done,
        and before its result is there."""

    def close(self) -> None:
        """Wait for what was started. Nothing may be started afterwards."""


class CallersLane:
    """Runs work at once, before `start` returns."""

    def start(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future

    def when_done(self, tell: Callable[[int], None]) -> Callable[[int], None]:
        return tell

    def close(self) -> None:
        pass


class ThreadLane:
    """Runs work on one thread of its own, with as many torch threads as the caller has."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "model", torch.set_num_threads, (torch.get_num_threads(),))

    def start(self, work: Callable[[], T]) -> Future[T]:
        return self._executor.submit(work)

    def when_done(self, tell: Callable[[int], None]) -> Callable[[int], None]:
        return tell

    def close(self) -> None:
        self._executor.shutdown()
