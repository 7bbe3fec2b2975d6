"""Logs: one line per event, on stderr, for people (console) or collectors (json).

Code logs with `structlog.get_logger(__name__)`. What is bound with `structlog.contextvars` (`request_id` above all) is
on every line of that context, and the service's name on every line. Libraries on stdlib logging come out the same.
"""

from __future__ import annotations

import logging
import sys
from typing import IO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from baton.runtime import environ

# Libraries that report at `info` what a service already says in its own words.
_QUIET = ("httpx", "httpcore", "uvicorn.access", "uvicorn.error", "asyncio", "grpc", "transformers")


def configure(service: str, level: str = "info", format: str = "console", stream: IO[str] | None = None) -> None:
    """Send all logs of this process to `stream` (stderr by default). Calling it again replaces the earlier set-up."""
    out = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _name_service(service),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(format, out)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _name_service(service: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add


def _renderers(format: str, stream: IO[str]) -> list[Processor]:
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colour = environ.use_colour(stream)
    return [
        structlog.dev.ConsoleRenderer(colors=colour, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback)
    ]
