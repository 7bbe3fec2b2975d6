"""The life of a process: event loop, signals, exit codes, its end with its parent.

A service is a coroutine that serves until it is cancelled; cancelling it is its graceful stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from baton.core.errors import BatonError, ConfigError
from baton.runtime.tied import die_with_parent

__all__ = [
    "EXIT_CONFIG",
    "EXIT_FAILED",
    "cancel_and_wait",
    "die_with_parent",
    "parse_host_port",
    "run_service",
    "to_its_end",
]

log = structlog.get_logger(__name__)

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_CONFIG = 2  # starting again cannot help: the settings must be changed


def run_service(factory: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `factory()` on a new event loop (uvloop where there is one) until it ends. Returns the exit code.

    The first SIGTERM or SIGINT cancels it once, a second one ends the process at once. 0: it returned or was stopped
    by a signal; 2: ConfigError, told in one line on stderr; 1: any other error.
    """
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_signal(factory))
        return 0
    except ConfigError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
        return EXIT_CONFIG
    except BatonError as error:
        log.error("service failed", error=error.message, kind=type(error).__name__)
        return EXIT_FAILED
    except Exception:
        log.exception("service failed")
        return EXIT_FAILED


async def _until_signal(factory: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(factory())
    stopping = False

    def on_signal(number: int) -> None:
        nonlocal stopping
        if stopping:
            os._exit(128 + number)
        stopping = True
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def to_its_end(work: Awaitable[T]) -> T:
    """Await what cannot be taken back: to its end, also when the caller is cancelled meanwhile. The cancellation goes
    on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.cancelled() or task.exception()  # taken notice of
        raise cancelled
    return task.result()


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until all have ended. Their errors are dropped; None and finished ones are fine.

    When the caller itself is cancelled meanwhile, that goes on after the tasks' end.
    """
    alive = [task for task in tasks if task is not None and not task.done()]
    for task in alive:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in alive if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in alive:
        if not task.cancelled():
            task.exception()  # taken notice of: asyncio shall not report it
    if cancelled is not None:
        raise cancelled


def parse_host_port(address: str) -> tuple[str, int]:
    """Split `host:port` or `[ipv6]:port`. Raises ConfigError that says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise ConfigError(f"address {address!r} must be host:port, such as 127.0.0.1:7000 or [::1]:7000")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {address!r}: an IPv6 host stands in brackets, such as [::1]:7000")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"address {address!r}: the port must be a number from 0 to 65535")
    return host, int(port)
