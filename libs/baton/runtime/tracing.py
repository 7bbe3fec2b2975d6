"""Traces: one request's way through the services, as spans that a collector puts together.

    span = tracing.start("router.place", parent, {"baton.request_id": "r1"})
    message.traceparent = span.traceparent
    ...
    span.end()

Off unless `install` was called with a tracer (`baton.runtime.tracing_otel` has one): then every span is the same object
that does nothing, and every `traceparent` is empty. Context crosses processes as the text of a W3C `traceparent`
(https://www.w3.org/TR/trace-context/), in fields of messages. Knows no protocol and no SDK. Any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeAlias

Value: TypeAlias = str | bool | int | float
Attributes: TypeAlias = Mapping[str, Value]
_NONE: Attributes = {}


class Span(Protocol):
    """A stage of a request. Times are wall clock, seconds since 1970; None = now. False when nothing is recorded."""

    @property
    def traceparent(self) -> str:
        """The context for spans below this one; empty when there is none."""

    @property
    def trace_id(self) -> str: ...

    def __bool__(self) -> bool: ...

    def set(self, attributes: Attributes) -> None: ...

    def event(self, name: str, attributes: Attributes = _NONE, at: float | None = None) -> None: ...

    def end(self, error: str = "", at: float | None = None) -> None:
        """The stage is over; with `error` it has failed. Later calls do nothing."""


class Tracer(Protocol):
    """Makes spans. `parent` is a traceparent; an empty or malformed one begins a trace. `is_entry`: from outside."""

    def start(self, name: str, parent: str, attributes: Attributes, *, is_entry: bool, at: float | None) -> Span: ...


class _NoSpan:
    __slots__ = ()
    traceparent = ""
    trace_id = ""

    def __bool__(self) -> bool:
        return False

    def set(self, attributes: Attributes) -> None:
        """Nothing is recorded."""

    def event(self, name: str, attributes: Attributes = _NONE, at: float | None = None) -> None:
        """Nothing is recorded."""

    def end(self, error: str = "", at: float | None = None) -> None:
        """Nothing is recorded."""


NO_SPAN: Span = _NoSpan()

_tracer: Tracer | None = None
_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


def install(tracer: Tracer | None) -> None:
    """Record spans with `tracer` from now on; None switches tracing off."""
    global _tracer
    _tracer = tracer


def is_on() -> bool:
    return _tracer is not None


def start(name: str, parent: str, attributes: Attributes = _NONE, at: float | None = None) -> Span:
    """A span below `parent`; NO_SPAN when that is empty: what is not traced before is not traced here."""
    if _tracer is None or not parent:
        return NO_SPAN
    return _tracer.start(name, parent, attributes, is_entry=False, at=at)


def enter(name: str, parent: str, attributes: Attributes = _NONE) -> Span:
    """The first span of this system: below `parent`, which a caller may have given, or of a trace that begins here."""
    if _tracer is None:
        return NO_SPAN
    return _tracer.start(name, parent, attributes, is_entry=True, at=None)


def current() -> Span:
    """The span that this context works for."""
    return _current.get()


@contextmanager
def working_for(span: Span) -> Iterator[None]:
    """`span` is `current` for what runs inside, tasks that begin there included."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)
