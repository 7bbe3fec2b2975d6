"""One line that a child wrote: a JSON log record of ours, or any text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_NOT_FIELDS = ("event", "level", "timestamp", "service", "exception")
_READY = re.compile(r"^ready\b|(?<!not )\bready$|\blistens$|\bready to accept connections", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LogLine:
    """`record` is the JSON object, None for plain text. `trace` is a traceback or other lines below the event."""

    text: str
    event: str
    level: str = ""
    at: datetime | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    trace: str = ""
    record: dict[str, Any] | None = None

    @property
    def says_ready(self) -> bool:
        """Every service logs one event like `worker ready` or `router listens` once it serves; so does Redis."""
        return _READY.search(self.event) is not None

    @property
    def summary(self) -> str:
        """Event and fields on one line."""
        return " ".join([self.event, *(f"{key}={value}" for key, value in self.fields.items())])


def parse_line(text: str) -> LogLine:
    record = _json_object(text)
    if record is None or not isinstance(record.get("event"), str):
        return LogLine(text, text)
    return LogLine(
        text,
        record["event"],
        level=str(record.get("level", "")),
        at=_time(record.get("timestamp")),
        fields={key: value for key, value in record.items() if key not in _NOT_FIELDS},
        trace=str(record.get("exception") or ""),
        record=record,
    )


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value)).astimezone()
    except ValueError:
        return None
