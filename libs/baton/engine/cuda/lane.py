"""A lane (baton.engine.lane) of a GPU: steps are launched on its stream, in order, and nobody waits for them there.

A step has ended when the stream has passed an event behind it. What has to happen while it runs, announcing layers
whose K and V are in the pool, is done by a thread that waits for an event behind each of these layers: when the host
has launched a layer, the pool does not hold it yet.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from baton.engine.lane import CallersLane

T = TypeVar("T")


class Event(Protocol):
    """A place in the stream, which `synchronize` sleeps until the device has passed."""

    def synchronize(self) -> None: ...


def record() -> Event:
    """An event behind all that was launched on this thread's stream; waiting for it takes no processor time."""
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event


@dataclass(frozen=True, slots=True)
class _Launched(Generic[T]):
    """Work on the stream, and how launching it went. `told`: what was to be done while it ran."""

    launch: Future[T]
    end: Event
    told: list[Future[None]]

    def result(self) -> T:
        self.end.synchronize()  # first: whatever was launched before an error must not run on in pages given back
        value = self.launch.result()
        for each in self.told:
            each.result()
        return value


class StreamLane:
    """Launches on the caller's thread and current stream. `record` makes events."""

    def __init__(self, record: Callable[[], Event] = record) -> None:
        self._record = record
        self._launch = CallersLane()
        self._teller = ThreadPoolExecutor(1, "layers")
        self._told: list[Future[None]] = []  # of the step that is being launched

    def start(self, work: Callable[[], T]) -> _Launched[T]:
        self._told = []
        return _Launched(self._launch.start(work), self._record(), self._told)

    def when_done(self, tell: Callable[[int], None]) -> Callable[[int], None]:
        def launched(layer: int) -> None:
            self._told.append(self._teller.submit(_tell, self._record(), tell, layer))

        return launched

    def close(self) -> None:
        self._teller.shutdown()


def _tell(event: Event, tell: Callable[[int], None], layer: int) -> None:
    event.synchronize()
    tell(layer)
